//! The kernel's own NBD client, set up by `nbd-client` over netlink.
//!
//! The machines that Backstay is developed on have none: its command lines are tested against a recorder that plays the kernel, and
//! `make test-vm` runs it in a machine of its own (Linux 6.1).
//!
//! A device whose keeper was killed by somebody else is left to the operator (`nbd-client -d`): its number may be another's by now.

use super::{Method, Place, unused};
use crate::attach::{
    AttachError,
    command::{must, run},
    keeper::{self, Line},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The kernel's nbd.
///
/// The kernel never sees that the daemon is away: its connection ends at the keeper, which has the patience. So it is given no
/// timeout of its own; `nbd-client -persist`, which makes a new connection after errors were seen, is not needed.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The program.
    pub client: PathBuf,
    /// Where block devices are described.
    pub sys: PathBuf,
    /// Where they are.
    pub dev: PathBuf,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            client: "nbd-client".into(),
            sys: "/sys/block".into(),
            dev: "/dev".into(),
        }
    }
}

impl Kernel {
    /// Whether the kernel has it.
    #[must_use]
    pub fn is_there() -> bool {
        Path::new("/sys/module/nbd").exists()
    }

    fn is_connected(&self, name: &str) -> bool {
        let size = fs::read_to_string(self.sys.join(name).join("size"));
        size.is_ok_and(|s| s.trim().parse().is_ok_and(|sectors: u64| sectors > 0))
    }

    /// A device that nobody uses.
    fn free(&self) -> Result<String, AttachError> {
        let mut names = (0..256).map(|n| format!("nbd{n}"));
        let free = names.find(|n| self.sys.join(n).exists() && !self.is_connected(n));
        free.ok_or_else(|| {
            let none = io::Error::new(io::ErrorKind::ResourceBusy, "no free nbd device (nbds_max)");
            AttachError::io(self.sys.join("nbd*").display())(none)
        })
    }

    /// The device that was chosen, as written down before it was made.
    fn chosen(place: &Place) -> Option<String> {
        fs::read_to_string(place.file("nbd")).ok()
    }

    fn clear(place: &Place) {
        place.clear();
        let _ = fs::remove_file(place.file("nbd"));
    }
}

impl Method for Kernel {
    fn attach(&self, place: &Place, line: &Line<'_>) -> Result<PathBuf, AttachError> {
        let name = self.free()?;
        let chosen = place.file("nbd");
        fs::write(&chosen, &name).map_err(AttachError::io(chosen.display()))?;
        let device = self.dev.join(&name);
        let mut client = vec![
            self.client.clone().into(),
            "-unix".into(),
            keeper::socket(place).into(),
            device.clone().into(),
            // As of a loop device: a file system may have been made on one.
            "-block-size".into(),
            "512".into(),
        ];
        if line.read_only {
            client.push("-readonly".into());
        }
        let up = line.start(place, &client, || self.is_connected(&name));
        if let Err(e) = up {
            self.destroy(place);
            return Err(e);
        }
        Ok(device)
    }

    fn device(&self, place: &Place) -> Option<PathBuf> {
        keeper::of(place)?;
        let name = Self::chosen(place).filter(|n| self.is_connected(n))?;
        Some(self.dev.join(name))
    }

    fn detach(&self, place: &Place) -> Result<(), AttachError> {
        if let Some(device) = self.device(place) {
            unused(&device)?;
            must(
                &self.client.display().to_string(),
                &["-d", &device.display().to_string()],
            )?;
            keeper::wait_gone(place);
        }
        keeper::kill(place);
        Self::clear(place);
        Ok(())
    }

    fn remains(&self, place: &Place) -> Vec<PathBuf> {
        // Without its keeper the device may be anybody's.
        let name = keeper::of(place).and_then(|_| Self::chosen(place));
        name.map(|n| self.dev.join(n)).into_iter().collect()
    }

    fn cut(&self, place: &Place) {
        for device in self.remains(place) {
            let client = self.client.display().to_string();
            let _ = run(&client, &["-d", &device.display().to_string()]);
        }
        keeper::kill(place);
    }

    fn destroy(&self, place: &Place) {
        self.cut(place);
        Self::clear(place);
    }
}
