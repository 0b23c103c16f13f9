//! What the figures were measured on and with.

use std::{fs, os::unix::fs::MetadataExt, path::Path, process::Command};
use testkit::proc::{need_tool, root};

/// Bytes written so far to the disk on which a file or folder is, by anybody.
pub fn written(at: &Path) -> u64 {
    let device = fs::metadata(at).expect("it is there").dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/stat");
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let sectors = text.split_whitespace().nth(6).and_then(|n| n.parse::<u64>().ok());
    sectors.unwrap_or_else(|| panic!("{path}: {text}")) * 512
}

/// Facts, by name.
pub fn facts(folder: &Path) -> Vec<(&'static str, String)> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |path: &str, name: &str| {
        let text = read(path);
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("", |(_, v)| v).trim().to_owned()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = field("/proc/meminfo", "MemTotal");
    let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let disk = first_line(
        Command::new("findmnt")
            .args(["-n", "-o", "FSTYPE,SOURCE", "-T"])
            .arg(folder),
    );
    let hypervisor = if read("/proc/cpuinfo").contains("hypervisor") {
        ", a virtual machine"
    } else {
        ""
    };
    let mut facts = vec![
        (
            "date",
            first_line(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
        ),
        (
            "machine",
            format!(
                "{cores} cores of {}, {} GiB of memory{hypervisor}",
                field("/proc/cpuinfo", "model name"),
                kib >> 20
            ),
        ),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("volumes and journals on", disk),
        (
            "Backstay",
            first_line(Command::new("git").args(["-C"]).arg(root()).args([
                "describe",
                "--always",
                "--dirty",
                "--abbrev=10",
            ])) + ", the dev profile of Cargo.toml",
        ),
    ];
    for (name, tool, args) in [
        ("fio", "fio", vec!["--version"]),
        ("qemu-nbd", "qemu-nbd", vec!["--version"]),
        ("nbdkit", "nbdkit", vec!["--version"]),
        ("nbd-server", "nbd-server", vec!["-V"]),
        ("nbdcopy", "nbdcopy", vec!["--version"]),
        ("btrfs-progs", "btrfs", vec!["--version"]),
        ("zstd", "zstd", vec!["--version"]),
        ("PostgreSQL", "psql", vec!["--version"]),
    ] {
        facts.push((name, first_line(Command::new(need_tool(tool)).args(args))));
    }
    facts
}

/// Mean number of processes that wanted a core in the last minute.
pub fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|n| n.parse().ok());
    first.unwrap_or(f64::NAN)
}

/// The first line that a command says, wherever it says it.
fn first_line(command: &mut Command) -> String {
    let said = command.output().map(|o| [o.stdout, o.stderr].concat());
    let text = said.map_or_else(
        |e| e.to_string(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    );
    text.lines().next().unwrap_or_default().trim().to_owned()
}
