//! State maps as text (R12, R25): `docs/formats/state-map.md`.

use crate::map_text::{MapText, parse, render};
use model::{ContextId, VolumeIndex};
use rand::{Rng, rngs::StdRng, seq::IndexedRandom};
use testkit::{golden, with_seeds};

fn map(volume: u16, name: &str, cells: u64, stale: Vec<std::ops::Range<u64>>) -> MapText {
    MapText {
        context: ContextId(1),
        volume: VolumeIndex(volume),
        name: name.into(),
        size: cells * 32768 - 512,
        region_size: 32768,
        stale,
    }
}

fn maps() -> Vec<MapText> {
    vec![
        map(0, "data", 1536, vec![4..10, 1535..1536]),
        map(1, "log", 256, Vec::new()),
        map(2, "tmp", 3, vec![0..1, 2..3]),
    ]
}

#[test]
fn the_format() {
    let text = render(&maps());
    golden::check_text(
        concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/journal/state-map.txt"),
        &text,
    );
    assert_eq!(parse(&text).unwrap(), maps());
    // What an editor does to it changes nothing.
    assert_eq!(parse(&text.replace('\n', "\r\n\n")).unwrap(), maps());
    assert_eq!(parse(text.trim_end()).unwrap(), maps());
    let cells: Vec<_> = maps()[0].runs().collect();
    assert_eq!(cells, [(0..4, 0), (4..10, 15), (10..1535, 0), (1535..1536, 15)]);
    assert_eq!(
        maps()[0].stale_bytes(),
        7 * 32768 - 512,
        "the last region is cut short"
    );
}

/// What was on its way when a map was written may have arrived or not.
#[test]
fn r12_cells_in_flight_are_read_as_stale() {
    let text = render(&maps()[..1]);
    for state in ["1", "2", "3", "4", "5", "6", "7", "f", "F"] {
        let text = text.replace("4-9 f", &format!("4-7 {state}\n8-9 {state}"));
        assert_eq!(parse(&text).unwrap(), maps()[..1], "{state}");
    }
    let text = text.replace("4-9 f", "4-9 0");
    assert_eq!(parse(&text).unwrap()[0].stale_bytes(), 32768 - 512);
}

/// Every refusal names the line, what stands there and what would be right.
#[test]
fn errors_name_line_value_and_what_to_do() {
    let text = render(&maps());
    for (from, to, line, words) in [
        ("# backstay state map 1", "hello", 1, "give what map dump printed"),
        (
            "state map 1\n",
            "state map 2\n",
            1,
            "version 2 was found, this build reads 1",
        ),
        ("state map 1\n", "state map x\n", 1, "'x' is no number"),
        ("context 1\n", "", 2, "'context ID' is expected"),
        ("context 1\n", "context one\n", 2, "'one' is no number"),
        ("volume 0 data", "volume 0", 3, "'volume INDEX NAME' is expected"),
        (
            "volume 0 data",
            "volume 70000 data",
            3,
            "'70000' is no number that fits",
        ),
        ("volume 0 data", "volume 0 da ta", 3, "one word"),
        ("size 50331136", "size -5", 4, "'-5' is no number"),
        (
            "size 50331136",
            "size 99999999999999999999",
            4,
            "is no number that fits",
        ),
        ("region 32768", "region 0", 5, "a power of two"),
        ("0-3 0", "1-3 0", 6, "the next run begins with cell 0"),
        ("4-9 f", "5-9 f", 7, "the next run begins with cell 4"),
        ("4-9 f", "4-3 f", 7, "must be 4 to 1535"),
        ("4-9 f", "4-1536 f", 7, "must be 4 to 1535"),
        (
            "4-9 f",
            "4-9 8",
            7,
            "0 (consistent), 1 to 7 (in flight) or f (stale)",
        ),
        ("4-9 f", "4-9 ff", 7, "0 (consistent)"),
        (
            "4-9 f",
            "4 9 f",
            7,
            "'FIRST-LAST STATE' or 'end CELLS' is expected",
        ),
        ("4-9 f", "+4-9 f", 7, "'+4' is no number"),
        ("1535-1535 f\n", "", 9, "the runs before cover 1535"),
        ("end 1536", "end 1535", 10, "the volume has 1536 cells"),
        (
            "end 1536\n",
            "",
            10,
            "'FIRST-LAST STATE' or 'end CELLS' is expected",
        ),
        ("volume 1 log", "volume 0 log", 17, "a second map of volume 0"),
    ] {
        assert!(text.contains(from), "{from}");
        let e = parse(&text.replacen(from, to, 1)).unwrap_err();
        assert!(e.line == line && e.fault.contains(words), "{from} -> {to}: {e}");
        let found = to.lines().next().filter(|t| !t.is_empty());
        let shown = found.is_none_or(|t| e.found.contains(t) || from.ends_with('\n') || line > 10);
        assert!(shown, "{from} -> {to}: {e}");
    }
    for (text, line) in [("", 1), ("\n\n", 1)] {
        let e = parse(text).unwrap_err().to_string();
        assert!(
            e.contains(&format!("line {line}: the text ends here")) && e.contains("take another dump"),
            "{e}"
        );
    }
    // A line of any length is shown cut, between characters.
    let e = parse(&format!("{}\u{e9}{}", "x".repeat(59), "y".repeat(9000))).unwrap_err();
    assert!(e.found.len() < 80 && e.found.ends_with("...'"), "{e}");
}

fn random(rng: &mut StdRng) -> Vec<MapText> {
    (0..rng.random_range(1..4))
        .map(|volume| {
            let region_size = 1u64 << rng.random_range(12..=20);
            let size = rng.random_range(1..400 * region_size);
            let cells = size.div_ceil(region_size);
            let (mut stale, mut at) = (Vec::new(), rng.random_range(0..20));
            while at < cells {
                let end = (at + rng.random_range(1..60)).min(cells);
                stale.push(at..end);
                at = end + rng.random_range(1..60);
            }
            MapText {
                context: ContextId(rng.random()),
                volume: VolumeIndex(volume),
                name: ["data", "log", "a.b_c-d", "0"].choose(rng).unwrap().to_string(),
                size,
                region_size,
                stale,
            }
        })
        .collect()
}

/// Any map comes back as it was. What damage makes of a text is refused, or is a map of the same form: complete, in order, of
/// the cells that its size says.
#[test]
fn any_map_comes_back_and_damage_is_bounded() {
    let (mut refused, mut taken) = (0, 0);
    with_seeds("map text", 400, |rng| {
        let maps = random(rng);
        let text = render(&maps);
        assert_eq!(parse(&text).unwrap(), maps);
        for _ in 0..40 {
            let mut bytes = text.clone().into_bytes();
            for _ in 0..rng.random_range(1..3) {
                let at = rng.random_range(0..bytes.len());
                match rng.random_range(0..5) {
                    0 => bytes[at] ^= 1 << rng.random_range(0..7),
                    1 => bytes[at] = *b"0123456789abcdef- \n#".choose(rng).unwrap(),
                    2 => bytes.truncate(at + 1),
                    3 => drop(bytes.remove(at)),
                    _ => bytes.insert(at, *b"0123456789 -\nf".choose(rng).unwrap()),
                }
                if bytes.is_empty() {
                    break;
                }
            }
            let Ok(damaged) = String::from_utf8(bytes) else {
                continue;
            };
            match parse(&damaged) {
                Err(e) => {
                    refused += 1;
                    assert!(e.line >= 1 && e.line <= damaged.lines().count() + 1, "{e}");
                }
                Ok(maps) => {
                    taken += 1;
                    for map in &maps {
                        assert!(map.stale.iter().all(|r| r.start < r.end && r.end <= map.cells()));
                        assert!(map.stale.windows(2).all(|w| w[0].end < w[1].start));
                        assert!(map.stale_bytes() <= map.size);
                    }
                    assert_eq!(
                        parse(&render(&maps)).unwrap(),
                        maps,
                        "what was read can be written"
                    );
                }
            }
        }
    });
    println!("{refused} damaged texts refused, {taken} taken as other maps");
    assert!(refused > taken && taken > 0);
}
