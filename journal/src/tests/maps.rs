//! State maps beyond drops: dirty, taken over, loaded, lost (R11, R15, R18, R26, `rules.md` C4).

use super::{
    tails::{cut_at_every_sync, with_cuts},
    *,
};
use crate::{Cell, IndexFloors, MapShape, RocksStore, SealFlags};
use model::{
    ByteRange, ContextId,
    ports::{Batch, Family, Store},
};
use std::cell::Cell as Flag;

const V: VolumeIndex = VolumeIndex(0);
const W: VolumeIndex = VolumeIndex(1);
const REGION: u64 = 32 << 10;
/// More cells than a row holds.
const CELLS: u64 = 2500;
const SIZE: u64 = (CELLS - 1) * REGION + 5;
const SHAPE: MapShape = MapShape {
    size: SIZE,
    region_size: REGION,
    default: Cell::Clean,
};

fn region(n: u64) -> ByteRange {
    ByteRange::at(n * REGION, REGION)
}

/// Two volumes with clean maps but for a few drops at records 3 and 4; five records.
fn prepare() -> (Lab, Journal) {
    let lab = Lab::new();
    let j = lab.fresh();
    for volume in [V, W] {
        j.set_map(volume, SHAPE).unwrap();
    }
    fill(&j, 5, 600);
    j.sync().unwrap();
    j.mark_stale(&[(V, region(3)), (W, region(2000))], WriteSeq(3))
        .unwrap();
    j.mark_stale(&[(V, region(4))], WriteSeq(4)).unwrap();
    (lab, j)
}

fn is_wholly_suspect(j: &Journal, volume: VolumeIndex, at: u64) -> bool {
    let all = ByteRange { start: 0, end: SIZE };
    j.map_runs(volume) == [(all, Cell::Suspect(WriteSeq(at)))]
}

/// Runs a change of maps cut at every sync. What it returned from is there after the cut; what was cut is as before or after.
fn durable_or_as_before(name: &str, change: impl Fn(&Journal) -> Result<WriteSeq, JournalError>) {
    let cuts = with_cuts(name, |rng| {
        let ended = Flag::new(false);
        let maps = |j: &Journal| [V, W].map(|v| (j.map_shape(v), j.map_runs(v)));
        let (_lab, j) = prepare();
        let before = maps(&j);
        change(&j).unwrap();
        let after = maps(&j);
        assert_ne!(before, after);
        let history = |j: &Journal| {
            ended.set(false);
            change(j)?;
            ended.set(true);
            Ok(())
        };
        let check = |lab: &Lab| {
            let (j, _) = lab.open().unwrap();
            let found = maps(&j);
            assert!(found == after || (found == before && !ended.get()), "{found:?}");
            assert_eq!(
                j.is_suspect(),
                found == after,
                "the flag is of this process alone"
            );
        };
        cut_at_every_sync(rng, prepare, history, check)
    });
    assert!(cuts >= 2, "rows and superblock: {cuts} cuts");
}

/// A's map calls region 7 stale, at a position of A's own line. B, which is production now, stands at 5 and has a copy of that
/// region on its way, taken at 5: it was read before B knew, and does not answer for what A says. With A's number the cell
/// would be clean too early, or never.
#[test]
fn c4_a_cell_taken_over_is_stale_at_the_senders_position() {
    let (_lab, j) = prepare();
    assert_eq!(
        j.take_over(&[(V, region(7)), (V, region(4))]).unwrap(),
        WriteSeq(5)
    );
    assert_eq!(j.cell(V, region(7).start), Some(Cell::Suspect(WriteSeq(5))));
    assert_eq!(
        j.cell(V, region(4).start),
        Some(Cell::Suspect(WriteSeq(5))),
        "it was stale at 4"
    );
    assert_eq!(
        j.cell(V, region(3).start),
        Some(Cell::Stale(WriteSeq(3))),
        "nobody named it"
    );
    j.clear_if_older(&[(V, region(7), WriteSeq(5))]).unwrap();
    assert_eq!(j.cell(V, region(7).start), Some(Cell::Suspect(WriteSeq(5))));
    let next = fill(&j, 1, 100);
    j.clear_if_older(&[(V, region(7), next)]).unwrap();
    assert_eq!(j.cell(V, region(7).start), Some(Cell::Clean));
    durable_or_as_before("c4 taken over", |j| {
        j.take_over(&[(V, region(7)), (W, region(1999))])
    });
}

/// Records of a suspect region are dropped: it stays suspect, at the newer position.
#[test]
fn c4_a_drop_in_a_suspect_region_raises_it() {
    let (_lab, j) = prepare();
    j.take_over(&[(V, region(7))]).unwrap();
    j.mark_stale(&[(V, region(7))], WriteSeq(9)).unwrap();
    j.mark_stale(&[(V, region(7))], WriteSeq(6)).unwrap();
    j.clear_if_older(&[(V, region(7), WriteSeq(8))]).unwrap();
    assert_eq!(j.cell(V, region(7).start), Some(Cell::Suspect(WriteSeq(9))));
}

/// What was dropped and has arrived nevertheless is forgotten; what an operator called stale is not.
#[test]
fn r15_a_peer_that_has_every_record_does_not_clear_what_is_suspect() {
    let (_lab, j) = prepare();
    j.take_over(&[(V, region(4)), (V, region(2100))]).unwrap();
    assert!(!j.forget_covered().unwrap(), "two regions are suspect");
    assert_eq!((j.stale_bytes(V), j.stale_bytes(W)), (2 * REGION, 0));
    j.stale_all(&[W]).unwrap();
    assert!(!j.forget_covered().unwrap());
    assert_eq!((j.stale_bytes(V), j.stale_bytes(W)), (2 * REGION, SIZE));
    let all = ByteRange { start: 0, end: SIZE };
    j.clear_if_older(&[(V, all, WriteSeq(6)), (W, all, WriteSeq(6))])
        .unwrap();
    assert!(!j.is_suspect());
    assert!(j.forget_covered().unwrap());
}

/// A host that was production has its own map still when it is a replica again; when all copies are there it is empty.
#[test]
fn r18_the_other_map_is_cleared_when_nothing_differs() {
    let (lab, j) = prepare();
    j.stale_all(&[W]).unwrap();
    j.nothing_differs().unwrap();
    assert_eq!(
        (j.stale_bytes(V), j.stale_bytes(W), j.is_suspect()),
        (0, 0, false)
    );
    let rows = j.changes();
    j.nothing_differs().unwrap();
    assert_eq!(j.changes(), rows, "there was nothing to say");
    drop(j);
    let (j, _) = lab.open().unwrap();
    assert_eq!((j.stale_bytes(V), j.stale_bytes(W)), (0, 0));
}

#[test]
fn r15_dirty_is_durable_for_all_volumes_at_once() {
    durable_or_as_before("r15 dirty", Journal::all_stale);
    let (_lab, j) = prepare();
    assert_eq!(j.stale_all(&[W]).unwrap(), WriteSeq(5));
    assert!(is_wholly_suspect(&j, W, 5));
    assert_eq!(j.stale_bytes(V), 2 * REGION, "only the volume that was named");
    let unknown = j.stale_all(&[V, VolumeIndex(9)]);
    assert!(
        matches!(unknown, Err(JournalError::UnknownVolume(_))),
        "{unknown:?}"
    );
    assert_eq!(j.stale_bytes(V), 2 * REGION, "all or none");
    // The position is this host's, whatever was stale before.
    j.clear_if_older(&[(W, region(1), WriteSeq(5))]).unwrap();
    assert!(is_wholly_suspect(&j, W, 5));
}

#[test]
fn r26_a_map_is_replaced_only_as_it_was_saved() {
    let (_lab, j) = prepare();
    let saved = j.save_maps();
    let text = saved.map(ContextId(1), V, "data").unwrap();
    assert_eq!(text.stale.first(), Some(&(3..5)));
    assert_eq!(text.stale_bytes(), 2 * REGION);
    // Something became stale since: it would be lost without a word.
    j.mark_stale(&[(V, region(9))], WriteSeq(5)).unwrap();
    for refused in [
        j.load_maps(&saved, std::slice::from_ref(&text)),
        j.clean_maps(&saved, &[V]),
        j.clean_maps(&saved, &[W, V]),
    ] {
        assert!(matches!(refused, Err(JournalError::MapChanged(V))), "{refused:?}");
    }
    assert_eq!((j.stale_bytes(V), j.stale_bytes(W)), (3 * REGION, REGION));
    j.clean_maps(&saved, &[W]).unwrap();
    assert_eq!((j.stale_bytes(V), j.stale_bytes(W)), (3 * REGION, 0));
    // The saved text brings back what was clean meanwhile.
    j.clean_maps(&j.save_maps(), &[V]).unwrap();
    j.load_maps(&j.save_maps(), std::slice::from_ref(&text)).unwrap();
    assert_eq!(j.save_maps().map(ContextId(1), V, "data"), Some(text));
    assert_eq!(j.cell(V, region(3).start), Some(Cell::Suspect(WriteSeq(5))));
    assert_eq!(j.cell(V, region(5).start), Some(Cell::Clean));
}

#[test]
fn r26_loads_and_cleans_are_durable_or_as_before() {
    durable_or_as_before("r26 load", |j| {
        let mut text = j.save_maps().map(ContextId(1), V, "data").unwrap();
        text.stale = vec![1000..1200, CELLS - 1..CELLS];
        j.load_maps(&j.save_maps(), &[text])
    });
    let cuts = with_cuts("r26 clean", |rng| {
        let check = |lab: &Lab| {
            let (j, _) = lab.open().unwrap();
            let stale = (j.stale_bytes(V), j.stale_bytes(W));
            assert!([(0, 0), (2 * REGION, REGION)].contains(&stale), "{stale:?}");
        };
        let clean = |j: &Journal| j.clean_maps(&j.save_maps(), &[V, W]).map(drop);
        cut_at_every_sync(rng, prepare, clean, check)
    });
    assert!(cuts >= 2, "{cuts} cuts");
}

#[test]
fn a_text_of_another_shape_is_refused() {
    let (_lab, j) = prepare();
    let saved = j.save_maps();
    let text = saved.map(ContextId(1), V, "data").unwrap();
    let other = crate::MapText {
        size: SIZE + 1,
        ..text.clone()
    };
    let e = j.load_maps(&saved, &[text, other]).unwrap_err().to_string();
    assert!(
        e.contains(&SIZE.to_string()) && e.contains(&(SIZE + 1).to_string()),
        "{e}"
    );
    assert_eq!(j.stale_bytes(V), 2 * REGION);
    assert!(!j.is_suspect(), "nothing was loaded");
}

/// What can happen to a map at rest.
const LOSSES: [&str; 5] = ["no row", "no row, no chunks", "row", "chunk", "other chunk"];

fn lose(lab: &Lab, what: &str) {
    let store = lab.power.store("db");
    let keys: Vec<Vec<u8>> = store.dump(Family::Map).into_iter().map(|(k, _)| k).collect();
    let of_volume: Vec<Vec<u8>> = keys.into_iter().filter(|k| k.starts_with(&[0, 0])).collect();
    let [row, first, second] = <[Vec<u8>; 3]>::try_from(of_volume).unwrap();
    let mut batch = Batch::default();
    match what {
        "no row" => batch.delete(Family::Map, row),
        "no row, no chunks" => [row, first, second]
            .into_iter()
            .for_each(|k| batch.delete(Family::Map, k)),
        // A region size of zero; runs that are not one chunk.
        "row" => (16..17).for_each(|_| {
            let mut value = store.get(Family::Map, &row).unwrap().unwrap().to_vec();
            value[9..17].fill(0);
            batch.put(Family::Map, row.clone(), value);
        }),
        "chunk" => assert!(store.flip_bit(Family::Map, &first, 3, 2)),
        _ => assert!(store.flip_bit(Family::Map, &second, 3, 7)),
    }
    store.commit(batch).unwrap();
}

/// As [`prepare`], with drops in two chunks of the first volume, whose map is then lost.
fn prepare_lost(what: &str) -> (Lab, Journal) {
    let (lab, j) = prepare();
    j.mark_stale(&[(V, region(1500))], WriteSeq(2)).unwrap();
    drop(j);
    lose(&lab, what);
    let (j, _) = lab.open().unwrap();
    (lab, j)
}

/// A map whose rows are missing or do not check costs its volume the map and not the context the start: the volume needs a
/// full sync, and is never taken for clean, wherever a cut comes.
#[test]
fn r15_a_lost_map_is_wholly_suspect_and_never_clean() {
    for what in LOSSES {
        let (_lab, j) = prepare_lost(what);
        assert_eq!(j.map_shape(V), None, "{what}");
        assert_eq!(j.stale_bytes(W), REGION, "{what}: the other volume keeps its map");
        let told = j.lost_maps();
        if what == "no row, no chunks" {
            assert!(told.is_empty(), "nothing is left to tell by");
        } else {
            assert!(
                matches!(told.as_slice(), [(Some(V), why)] if !why.is_empty()),
                "{what}: {told:?}"
            );
        }
        let cuts = with_cuts(&format!("r15 {what}"), |rng| {
            let ended = Flag::new(false);
            let mend = |j: &Journal| {
                ended.set(false);
                assert!(j.require_map(V, SIZE, REGION)?.is_some());
                assert_eq!(j.require_map(V, SIZE, REGION)?, None, "once");
                assert_eq!(j.require_map(W, SIZE, REGION)?, None);
                ended.set(true);
                Ok(())
            };
            let check = |lab: &Lab| {
                let (j, _) = lab.open().unwrap();
                assert!(
                    j.map_shape(V).is_none() || is_wholly_suspect(&j, V, 5),
                    "{:?}",
                    j.map_runs(V)
                );
                let why = j.require_map(V, SIZE, REGION).unwrap();
                assert!(why.is_none() || !ended.get(), "it was durable: {why:?}");
                assert!(is_wholly_suspect(&j, V, 5));
                assert!(j.lost_maps().is_empty() && j.is_suspect());
                assert_eq!(j.stale_bytes(W), REGION);
            };
            cut_at_every_sync(rng, || prepare_lost(what), mend, check)
        });
        assert!(cuts >= 2, "{what}: {cuts} cuts");
    }
}

/// Whoever gives a volume a map without knowing that there was one (a recovery host that becomes production) gets none that
/// is clean.
#[test]
fn r15_a_lost_map_is_not_replaced_by_a_clean_one() {
    for what in LOSSES.into_iter().filter(|what| *what != "no row, no chunks") {
        let (_lab, j) = prepare_lost(what);
        j.set_map(V, SHAPE).unwrap();
        assert!(is_wholly_suspect(&j, V, 5), "{what}");
    }
}

/// A file of the store rots: the maps in it are lost, and the journal opens.
#[test]
fn r15_maps_in_a_rotten_file_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let options = || Options {
        lfc_size: LFC,
        lfc_max_age_ns: None,
        ..Options::default()
    };
    let open = || Journal::open(Parts::open_dir(dir.path(), LFC).unwrap(), options()).unwrap();
    let (j, _) = open();
    j.create_generation(NewGeneration::own(GenId(1), None)).unwrap();
    j.set_map(V, SHAPE).unwrap();
    j.raise_bound().unwrap();
    drop(j);
    // A row that came in as a file of its own, which nothing rewrites.
    let marker = b"a row that rots in its file";
    {
        let store = RocksStore::open(&dir.path().join("db"), Arc::<IndexFloors>::default()).unwrap();
        let key = crate::keys::map_chunk(V, 1);
        let mut pairs = [(key, Bytes::from_static(marker))].into_iter();
        store.ingest(Family::Map, &mut pairs).unwrap();
    }
    let files = std::fs::read_dir(dir.path().join("db")).unwrap();
    let rotten = files.map(|f| f.unwrap().path()).find(|path| {
        let mut bytes = std::fs::read(path).unwrap_or_default();
        let sst = path.extension().is_some_and(|e| e == "sst");
        let at = bytes
            .windows(marker.len())
            .position(|w| w == marker)
            .filter(|_| sst);
        at.is_some_and(|at| {
            bytes[at] ^= 1;
            std::fs::write(path, bytes).is_ok()
        })
    });
    assert!(rotten.is_some(), "the row is in no file");
    for _ in 0..2 {
        let (j, _) = open();
        let told = j.lost_maps();
        assert!(
            matches!(told.as_slice(), [(None, why)] if why.contains("map")),
            "{told:?}"
        );
        let why = j.require_map(V, SIZE, REGION).unwrap().unwrap();
        assert!(why.contains("map"), "{why}");
        assert!(is_wholly_suspect(&j, V, j.cursors().appended.0));
        fill(&j, 1, 100);
        j.seal(SealFlags::default()).unwrap();
        j.clear_if_older(&[(V, region(0), WriteSeq(9))]).unwrap();
        assert_eq!(j.stale_bytes(V), SIZE - REGION, "it is a map like any other");
    }
}

/// Rows are of version 2 only where there is something to say in it; version 1 knows no suspect cell.
#[test]
fn rows_without_a_suspect_cell_stay_of_version_1() {
    let (lab, j) = prepare();
    let versions = || {
        let rows = lab.power.store("db").dump(Family::Map);
        rows.iter().map(|(_, row)| row[0]).collect::<Vec<_>>()
    };
    assert_eq!(versions(), [1, 1, 1, 1]);
    j.take_over(&[(V, region(3))]).unwrap();
    assert_eq!(versions(), [1, 2, 1, 1]);
    j.stale_all(&[W]).unwrap();
    assert_eq!(versions(), [1, 2, 2]);
    drop(j);
    let store = lab.power.store("db");
    let hex = |b: &[u8]| b.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let rows = store.dump(Family::Map);
    let rows = rows
        .iter()
        .map(|(key, row)| format!("{} {}\n", hex(key), hex(row)));
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/journal/map-rows.txt");
    testkit::golden::check_text(file, &rows.collect::<String>());
    let mut row = store.get(Family::Map, &[0, 1]).unwrap().unwrap().to_vec();
    row[0] = 1;
    let mut batch = Batch::default();
    batch.put(Family::Map, vec![0, 1], row);
    store.commit(batch).unwrap();
    let (j, _) = lab.open().unwrap();
    assert!(
        matches!(j.lost_maps().as_slice(), [(Some(W), _)]),
        "{:?}",
        j.lost_maps()
    );
}

/// N15: what a map holds grows with what differs, and not with the volume: one copy of a hole of a terabyte is one row, and what is dropped
/// behind it one chunk.
#[test]
fn a_hole_that_was_copied_is_no_more_than_a_row() {
    let lab = Lab::new();
    let j = lab.fresh();
    let shape = MapShape {
        size: 1 << 40,
        region_size: 32 << 10,
        default: Cell::Stale(WriteSeq(0)),
    };
    j.set_map(V, shape).unwrap();
    fill(&j, 5, 600);
    let all = ByteRange {
        start: 0,
        end: 1 << 40,
    };
    j.clear_if_older(&[(V, all, WriteSeq(4))]).unwrap();
    let rows = |j: &Journal, lab: &Lab| {
        assert_eq!(j.map_runs(V)[0].1, Cell::Clean);
        let mut rows = 0;
        let scan = &mut |_: &[u8], _: &[u8]| {
            rows += 1;
            true
        };
        lab.store().scan(Family::Map, &[], &[0xff; 11], scan).unwrap();
        rows
    };
    assert_eq!((rows(&j, &lab), j.stale_bytes(V)), (1, 0));
    j.mark_stale(&[(V, ByteRange::at(7 << 30, 10))], WriteSeq(5))
        .unwrap();
    assert_eq!((rows(&j, &lab), j.stale_bytes(V)), (2, 32 << 10));
    drop(j);
    let (j, _) = lab.open().unwrap();
    assert_eq!((rows(&j, &lab), j.stale_bytes(V)), (2, 32 << 10));
}
