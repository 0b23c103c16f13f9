//! State maps as text: what `map dump` prints, `map load` takes and is saved before a map is changed
//! (`docs/formats/state-map.md`).
//!
//! One block a volume, runs of equal cells in GeoRM's 4-bit states, complete and in order, closed by the number of cells: a
//! block that was cut off or edited out of shape is told. In flight (1 to 7) is read as stale, never as clean (R12).
//! Reading allocates no more than a few words a line.

use model::{ContextId, VolumeIndex};
use std::{collections::BTreeSet, fmt::Write as _, ops::Range};

/// Version of the format.
pub const VERSION: u32 = 1;
/// The first line of a block, before the version.
const TITLE: &str = "# backstay state map ";
/// Bytes of a volume's name.
const NAME_BYTES_MAX: usize = 255;
/// Most bytes of a line that an error repeats.
const SHOWN_BYTES: usize = 60;
/// State of a cell that is the same on both hosts.
pub const CLEAN: u8 = 0x0;
/// State of a cell that differs.
pub const STALE: u8 = 0xf;

/// The map of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapText {
    /// The context it is of, primary id.
    pub context: ContextId,
    /// The volume's place in it.
    pub volume: VolumeIndex,
    /// The volume's name.
    pub name: String,
    /// Bytes of the volume.
    pub size: u64,
    /// Bytes of a region: one cell.
    pub region_size: u64,
    /// The cells that are stale, rising, no two ranges touching; all others are clean.
    pub stale: Vec<Range<u64>>,
}

impl MapText {
    /// How many cells there are.
    #[must_use]
    pub const fn cells(&self) -> u64 {
        self.size.div_ceil(self.region_size)
    }

    /// Bytes of the stale cells.
    #[must_use]
    pub fn stale_bytes(&self) -> u64 {
        let at = |cell: u64| cell.saturating_mul(self.region_size).min(self.size);
        self.stale.iter().map(|r| at(r.end) - at(r.start)).sum()
    }

    /// Runs of equal cells: the range and its state.
    pub fn runs(&self) -> impl Iterator<Item = (Range<u64>, u8)> {
        let ends = self.stale.iter().map(|r| r.start).chain([self.cells()]);
        let starts = [0].into_iter().chain(self.stale.iter().map(|r| r.end));
        let clean = starts.zip(ends).map(|(start, end)| (start..end, CLEAN));
        let stale = self.stale.iter().map(|r| (r.clone(), STALE));
        let pairs = clean.zip(stale.map(Some).chain([None]));
        pairs
            .flat_map(|(clean, stale)| [Some(clean), stale])
            .flatten()
            .filter(|(cells, _)| !cells.is_empty())
    }
}

/// What is wrong with a text, where, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {found}: {fault}")]
pub struct MapTextError {
    /// Counted from 1.
    pub line: usize,
    /// What stands there, in quotes, cut short; or that the text ends there.
    pub found: String,
    /// What is wrong with it and what to do.
    pub fault: String,
}

/// Maps as text.
#[must_use]
pub fn render(maps: &[MapText]) -> String {
    let mut out = String::new();
    let mut line = |text: std::fmt::Arguments<'_>| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{text}");
    };
    for map in maps {
        line(format_args!("{TITLE}{VERSION}"));
        line(format_args!("context {}", map.context));
        line(format_args!("volume {} {}", map.volume, map.name));
        line(format_args!("size {}", map.size));
        line(format_args!("region {}", map.region_size));
        for (cells, state) in map.runs() {
            line(format_args!("{}-{} {state:x}", cells.start, cells.end - 1));
        }
        line(format_args!("end {}", map.cells()));
    }
    out
}

/// Reads maps from text.
///
/// # Errors
/// With the first line that is wrong.
pub fn parse(text: &str) -> Result<Vec<MapText>, MapTextError> {
    let mut lines = Lines {
        rest: text.lines().enumerate().peekable(),
        line: 0,
        now: None,
    };
    let (mut maps, mut seen) = (Vec::new(), BTreeSet::new());
    loop {
        let map = lines.map()?;
        if !seen.insert((map.context.0, map.volume.0)) {
            return Err(lines.fault(format!(
                "this ends a second map of volume {} of context {}: leave one of them out",
                map.volume, map.context
            )));
        }
        maps.push(map);
        if lines.is_at_end() {
            return Ok(maps);
        }
    }
}

type Numbered<'a> = std::iter::Peekable<std::iter::Enumerate<std::str::Lines<'a>>>;

struct Lines<'a> {
    rest: Numbered<'a>,
    /// The line that was taken last, and its text; `None` behind the last one.
    line: usize,
    now: Option<&'a str>,
}

impl<'a> Lines<'a> {
    /// What is wrong with the line that was taken last.
    fn fault(&self, fault: impl Into<String>) -> MapTextError {
        let found = self.now.map_or("the text ends here".to_owned(), |text| {
            let mut end = text.len().min(SHOWN_BYTES);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let dots = if end < text.len() { "..." } else { "" };
            format!("'{}{dots}'", text[..end].escape_debug())
        });
        MapTextError {
            line: self.line,
            found,
            fault: fault.into(),
        }
    }

    fn skip_blank(&mut self) {
        while self.rest.next_if(|(_, text)| text.trim().is_empty()).is_some() {}
    }

    fn is_at_end(&mut self) -> bool {
        self.skip_blank();
        self.rest.peek().is_none()
    }

    fn take(&mut self, expected: &str) -> Result<&'a str, MapTextError> {
        self.skip_blank();
        if let Some((line, text)) = self.rest.next() {
            (self.line, self.now) = (line + 1, Some(text.trim()));
            return Ok(text.trim());
        }
        (self.line, self.now) = (self.line + 1, None);
        Err(self.fault(format!(
            "{expected} is expected: the text was cut off, take another dump"
        )))
    }

    /// The words of a line that begins with `key`.
    fn words(&mut self, key: &str, form: &str) -> Result<&'a str, MapTextError> {
        let text = self.take(form)?;
        let words = text.strip_prefix(key).and_then(|rest| rest.strip_prefix(' '));
        words.ok_or_else(|| self.fault(format!("{form} is expected here")))
    }

    fn number<T: TryFrom<u64>>(&self, word: &str, form: &str) -> Result<T, MapTextError> {
        let number = Some(word).filter(|w| !w.is_empty() && w.bytes().all(|b| b.is_ascii_digit()));
        let number = number.and_then(|w| w.parse::<u64>().ok());
        let number = number.and_then(|n| T::try_from(n).ok());
        number.ok_or_else(|| {
            self.fault(format!(
                "'{}' is no number that fits in: {form}",
                word.escape_debug()
            ))
        })
    }

    fn map(&mut self) -> Result<MapText, MapTextError> {
        self.title()?;
        let form = "'context ID'";
        let word = self.words("context", form)?;
        let context = ContextId(self.number(word, form)?);
        let form = "'volume INDEX NAME'";
        let words = self.words("volume", form)?;
        let (index, name) = words
            .split_once(' ')
            .ok_or_else(|| self.fault(format!("{form} is expected here")))?;
        let volume = VolumeIndex(self.number(index, form)?);
        if name.len() > NAME_BYTES_MAX || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(self.fault("a volume's name is one word of at most 255 bytes"));
        }
        let form = "'size BYTES'";
        let word = self.words("size", form)?;
        let size = self.number(word, form)?;
        let form = "'region BYTES'";
        let word = self.words("region", form)?;
        let region_size: u64 = self.number(word, form)?;
        if !region_size.is_power_of_two() {
            return Err(
                self.fault("a region's size is a power of two: take the number of the context's file")
            );
        }
        let mut map = MapText {
            context,
            volume,
            name: name.to_owned(),
            size,
            region_size,
            stale: Vec::new(),
        };
        self.runs(&mut map)?;
        Ok(map)
    }

    fn title(&mut self) -> Result<(), MapTextError> {
        let text = self.take(&format!("'{TITLE}{VERSION}'"))?;
        let version = text.strip_prefix(TITLE).ok_or_else(|| {
            self.fault(format!(
                "a map begins with '{TITLE}{VERSION}': give what map dump printed"
            ))
        })?;
        match self.number::<u32>(version, "the version")? {
            VERSION => Ok(()),
            other => Err(self.fault(format!(
                "version {other} was found, this build reads {VERSION}: dump the map with this build"
            ))),
        }
    }

    /// The runs and the line behind them.
    fn runs(&mut self, map: &mut MapText) -> Result<(), MapTextError> {
        let form = "'FIRST-LAST STATE' or 'end CELLS'";
        let cells = map.cells();
        let mut next = 0;
        loop {
            let text = self.take(form)?;
            if let Some(word) = text.strip_prefix("end ") {
                let end: u64 = self.number(word, "'end CELLS'")?;
                if (next, end) != (cells, cells) {
                    return Err(self.fault(format!(
                        "the volume has {cells} cells, the runs before cover {next}: they must be the same"
                    )));
                }
                return Ok(());
            }
            let run = text
                .split_once(' ')
                .and_then(|(run, state)| Some((run.split_once('-')?, state)));
            let ((first, last), state) = run.ok_or_else(|| self.fault(format!("{form} is expected here")))?;
            let (first, last): (u64, u64) = (self.number(first, form)?, self.number(last, form)?);
            if first != next {
                return Err(self.fault(format!(
                    "the next run begins with cell {next}: leave none out, name none twice"
                )));
            }
            if last < first || last >= cells {
                return Err(self.fault(format!(
                    "the last cell of this run must be {first} to {}: the volume has {cells} cells",
                    cells.saturating_sub(1)
                )));
            }
            next = last + 1;
            match state {
                "0" => {}
                "1" | "2" | "3" | "4" | "5" | "6" | "7" | "f" | "F" => put_stale(&mut map.stale, first..next),
                _ => {
                    return Err(self.fault("a state is 0 (consistent), 1 to 7 (in flight) or f (stale)"));
                }
            }
        }
    }
}

fn put_stale(stale: &mut Vec<Range<u64>>, cells: Range<u64>) {
    match stale.last_mut() {
        Some(last) if last.end == cells.start => last.end = cells.end,
        _ => stale.push(cells),
    }
}
