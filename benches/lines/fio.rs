//! Runs of fio against an NBD export, over one connection.

use serde_json::Value;
use std::{path::Path, process::Command, time::Duration};
use testkit::proc::{Scratch, need_tool, run};

/// How much a run does.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// Every block of so many bytes from the start of the volume, once.
    Bytes(u64),
    /// Whatever it comes to in so long.
    Seconds(u64),
}

/// One run.
#[derive(Clone, Debug)]
pub struct Job {
    /// `randwrite`, `write`, `randread`.
    pub pattern: &'static str,
    pub block: u64,
    pub depth: u32,
    pub amount: Amount,
    /// A flush after so many writes.
    pub flush_every: Option<u32>,
    /// At most so many a second.
    pub rate: Option<u64>,
    /// Bytes of the volume that it stays in, from its start.
    pub within: u64,
    /// The same for all who are compared in one round.
    pub seed: u64,
}

impl Job {
    pub fn new(pattern: &'static str, block: u64, depth: u32, within: u64, amount: Amount) -> Self {
        Self {
            pattern,
            block,
            depth,
            amount,
            flush_every: None,
            rate: None,
            within,
            seed: 1,
        }
    }

    pub fn seeded(&self, round: usize) -> Self {
        Self {
            seed: 1 + round as u64,
            ..self.clone()
        }
    }

    /// The command line.
    pub fn command(&self, uri: &str, output: &Path) -> Command {
        let mut fio = Command::new(need_tool("fio"));
        fio.args([
            "--name=run",
            "--ioengine=nbd",
            "--output-format=json",
            "--percentile_list=50:99",
        ])
        .arg(format!("--uri={uri}"))
        .arg(format!("--output={}", output.display()))
        .arg(format!("--rw={}", self.pattern))
        .arg(format!("--bs={}", self.block))
        .arg(format!("--iodepth={}", self.depth))
        .arg(format!("--randseed={}", self.seed));
        if self.pattern.ends_with("write") {
            // Inside the measured time: fio counts it in.
            fio.arg("--end_fsync=1");
        }
        match self.amount {
            Amount::Bytes(bytes) => fio.arg(format!("--size={}", bytes.min(self.within))),
            Amount::Seconds(seconds) => fio
                .args(["--time_based", "--norandommap"])
                .arg(format!("--size={}", self.within))
                .arg(format!("--runtime={seconds}")),
        };
        if let Some(n) = self.flush_every {
            fio.arg(format!("--fsync={n}"));
        }
        if let Some(rate) = self.rate {
            fio.arg(format!("--rate_iops={rate}"));
        }
        fio
    }

    /// For the page.
    pub fn shown(&self) -> String {
        let command = self.command("URI", Path::new("FILE"));
        let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
        let words =
            words.filter(|w| !w.contains("output") && !w.contains("percentile") && !w.contains("--name"));
        format!("fio {}", words.collect::<Vec<_>>().join(" "))
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When fio fails, or an answer was an error.
    pub fn run(&self, scratch: &Scratch, uri: &str) -> Ran {
        let output = scratch.join(format!("fio-{}.json", unique()));
        let limit = Duration::from_secs(
            900 + match self.amount {
                Amount::Seconds(n) => n,
                Amount::Bytes(_) => 0,
            },
        );
        run(&mut self.command(uri, &output), limit).ok();
        let ran = self.read(&output);
        let _ = std::fs::remove_file(&output);
        ran
    }

    /// What fio reported.
    pub fn read(&self, output: &Path) -> Ran {
        Ran::read(output, self)
    }
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub struct Ran {
    /// Requests, but flushes, a second, the last flush counted in.
    pub iops: f64,
    pub mib_per_s: f64,
    /// From submission to answer, microseconds.
    pub p50_us: f64,
    pub p99_us: f64,
    pub longest_us: f64,
}

impl Ran {
    fn read(output: &Path, job: &Job) -> Self {
        let text = std::fs::read_to_string(output).unwrap_or_else(|e| panic!("{}: {e}", output.display()));
        // fio's engine may say something before its report.
        let json = text.find('{').map_or("", |at| &text[at..]);
        let report: Value = serde_json::from_str(json).unwrap_or_else(|e| panic!("{job:?}: {e}\n{text}"));
        let run = &report["jobs"][0];
        assert!(run["error"] == 0, "{job:?}: {text}");
        let figures = if job.pattern.ends_with("write") {
            &run["write"]
        } else {
            &run["read"]
        };
        let figure = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{job:?}: {text}"));
        let ran = Self {
            iops: figure(&figures["iops"]),
            mib_per_s: figure(&figures["bw_bytes"]) / f64::from(1 << 20),
            p50_us: figure(&figures["clat_ns"]["percentile"]["50.000000"]) / 1e3,
            p99_us: figure(&figures["clat_ns"]["percentile"]["99.000000"]) / 1e3,
            longest_us: figure(&figures["clat_ns"]["max"]) / 1e3,
        };
        if let Amount::Bytes(bytes) = job.amount {
            let wanted = bytes.min(job.within) / job.block;
            assert_eq!(figures["total_ios"].as_u64(), Some(wanted), "{job:?}: {text}");
        }
        ran
    }
}
