//! A load of metadata on a mounted file system that knows what must be there after a crash.
//!
//! One thread creates, overwrites, appends to, truncates, renames, links and unlinks files, and syncs what it did (the file, then
//! its folders). When the sync has returned it makes a [`Promise`]: at this path is this content, or nothing, from what was durable
//! then up to the moment in which it begins to change that path again. Another thread does the like and syncs nothing, so that the
//! logs are never of one transaction alone; of what it does nothing is promised.

use crate::recorder::{Held, Moment, Recorder};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

const FOLDERS: u32 = 5;
const NAMES: u32 = 12;
const FILE_BYTES_MAX: usize = 48 << 10;

/// What is at a path while it holds.
pub struct Promise {
    path: String,
    /// Length and digest of the file; none: nothing is there.
    content: Option<(usize, blake3::Hash)>,
    begun: Moment,
    from: Held,
    until: Option<Moment>,
}

impl Promise {
    /// When the operation began that it is of.
    pub fn begun(&self) -> Moment {
        self.begun
    }

    /// What was durable when it was made.
    pub fn from(&self) -> Held {
        self.from
    }

    /// Whether it must be kept where so many first changes are there and no others.
    pub fn holds_at_count(&self, count: usize) -> bool {
        self.from.count <= count && self.until.is_none_or(|u| count <= u.count)
    }

    /// Whether it must be kept after a crash at this moment.
    pub fn holds_at_tick(&self, tick: u64) -> bool {
        self.from.tick <= tick && self.until.is_none_or(|u| tick <= u.tick)
    }

    /// Looks whether it is kept below a folder.
    pub fn check(&self, root: &Path) -> Result<(), String> {
        let path = root.join(&self.path);
        let found = match fs::read(&path) {
            Ok(bytes) => Some((bytes.len(), blake3::hash(&bytes))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => return Err(format!("{}: {e}", self.path)),
        };
        if found == self.content {
            return Ok(());
        }
        let shown =
            |c: Option<(usize, blake3::Hash)>| c.map_or("nothing".into(), |(n, h)| format!("{n} bytes {h}"));
        Err(format!(
            "{}: {} was synced, {} is there",
            self.path,
            shown(self.content),
            shown(found)
        ))
    }
}

/// The files as they are, and what was promised of them.
pub struct Loader<'a> {
    root: PathBuf,
    recorder: &'a Recorder,
    rng: StdRng,
    /// What is at a path: a file, which may have several.
    paths: BTreeMap<String, u64>,
    files: HashMap<u64, Vec<u8>>,
    next: u64,
    /// When the operation began that is under way.
    begun: Moment,
    promises: Vec<Promise>,
    /// The promise that holds of a path.
    open: HashMap<String, usize>,
    /// How often each operation was done.
    pub done: BTreeMap<&'static str, usize>,
}

impl<'a> Loader<'a> {
    /// A loader with folders of its own, which are durable.
    pub fn new(root: &Path, recorder: &'a Recorder, rng: &mut StdRng) -> Self {
        for n in 0..FOLDERS {
            fs::create_dir(root.join(format!("d{n}"))).unwrap();
        }
        fs::create_dir(root.join("loose")).unwrap();
        rustix::fs::syncfs(File::open(root).unwrap()).unwrap();
        Self {
            root: root.to_owned(),
            recorder,
            rng: StdRng::from_rng(rng),
            paths: BTreeMap::new(),
            files: HashMap::new(),
            next: 0,
            begun: recorder.now(),
            promises: Vec::new(),
            open: HashMap::new(),
            done: BTreeMap::new(),
        }
    }

    /// All that was promised.
    pub fn promises(self) -> Vec<Promise> {
        self.promises
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn any_name(&mut self) -> String {
        let (folder, name) = (self.rng.random_range(0..FOLDERS), self.rng.random_range(0..NAMES));
        format!("d{folder}/f{name}")
    }

    fn any_file(&mut self) -> Option<String> {
        let all: Vec<&String> = self.paths.keys().collect();
        all.choose(&mut self.rng).map(|path| (*path).clone())
    }

    fn bytes(&mut self, max: usize) -> Vec<u8> {
        let mut bytes = vec![0; self.rng.random_range(0..max)];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// All paths of the file at a path.
    fn names_of(&self, path: &str) -> Vec<String> {
        let Some(file) = self.paths.get(path) else {
            return vec![path.to_owned()];
        };
        let same = self.paths.iter().filter(|(_, f)| *f == file);
        same.map(|(name, _)| name.clone()).collect()
    }

    /// What was promised of these paths ends: they are about to change.
    fn touch(&mut self, paths: &[String]) {
        let now = self.recorder.now();
        self.begun = now;
        for path in paths {
            if let Some(n) = self.open.remove(path) {
                self.promises[n].until = Some(now);
            }
        }
    }

    /// What is at these paths has been synced.
    fn promise(&mut self, paths: &[String]) {
        let from = self.recorder.held();
        for path in paths {
            let content = self.paths.get(path).map(|file| {
                let bytes = &self.files[file];
                (bytes.len(), blake3::hash(bytes))
            });
            self.open.insert(path.clone(), self.promises.len());
            self.promises.push(Promise {
                path: path.clone(),
                content,
                begun: self.begun,
                from,
                until: None,
            });
        }
    }

    /// Syncs the folders of these paths.
    fn sync_folders(&self, paths: &[String]) {
        let mut folders: Vec<PathBuf> = paths
            .iter()
            .map(|p| self.at(p).parent().unwrap().to_owned())
            .collect();
        folders.sort();
        folders.dedup();
        for folder in folders {
            File::open(folder).unwrap().sync_all().unwrap();
        }
    }

    /// One operation, synced and promised.
    pub fn step(&mut self) {
        let what = match self.rng.random_range(0..100) {
            0..30 => self.create(),
            30..45 => self.overwrite(),
            45..55 => self.append(),
            55..63 => self.truncate(),
            63..80 => self.rename(),
            80..88 => self.link(),
            _ => self.unlink(),
        };
        *self.done.entry(what).or_default() += 1;
    }

    /// A new file, or a new content of one from its beginning.
    fn create(&mut self) -> &'static str {
        let path = self.any_name();
        let names = self.names_of(&path);
        self.touch(&names);
        let bytes = self.bytes(FILE_BYTES_MAX);
        fs::write(self.at(&path), &bytes).unwrap();
        File::open(self.at(&path)).unwrap().sync_all().unwrap();
        self.sync_folders(std::slice::from_ref(&path));
        let file = self.paths.get(&path).copied().unwrap_or_else(|| {
            self.next += 1;
            self.next
        });
        self.paths.insert(path, file);
        self.files.insert(file, bytes);
        self.promise(&names);
        "create"
    }

    /// Some bytes of a file are others; sometimes a hole instead.
    fn overwrite(&mut self) -> &'static str {
        let Some(path) = self.any_file() else {
            return "nothing";
        };
        let names = self.names_of(&path);
        let file = self.paths[&path];
        let len = self.files[&file].len();
        if len == 0 {
            return "nothing";
        }
        self.touch(&names);
        let from = self.rng.random_range(0..len);
        let to = self.rng.random_range(from..=len);
        let on = OpenOptions::new().write(true).open(self.at(&path)).unwrap();
        let hole = self.rng.random_bool(0.3) && to > from;
        if hole {
            let how = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&on, how, from as u64, (to - from) as u64).unwrap();
            self.files.get_mut(&file).unwrap()[from..to].fill(0);
        } else {
            let mut bytes = vec![0; to - from];
            self.rng.fill_bytes(&mut bytes);
            on.write_all_at(&bytes, from as u64).unwrap();
            self.files.get_mut(&file).unwrap()[from..to].copy_from_slice(&bytes);
        }
        on.sync_data().unwrap();
        self.promise(&names);
        if hole { "punch" } else { "overwrite" }
    }

    fn append(&mut self) -> &'static str {
        let Some(path) = self.any_file() else {
            return "nothing";
        };
        let names = self.names_of(&path);
        self.touch(&names);
        let bytes = self.bytes(8 << 10);
        let on = OpenOptions::new().write(true).open(self.at(&path)).unwrap();
        let file = self.files.get_mut(&self.paths[&path]).unwrap();
        on.write_all_at(&bytes, file.len() as u64).unwrap();
        file.extend(bytes);
        on.sync_data().unwrap();
        self.promise(&names);
        "append"
    }

    fn truncate(&mut self) -> &'static str {
        let Some(path) = self.any_file() else {
            return "nothing";
        };
        let names = self.names_of(&path);
        self.touch(&names);
        let len = self.rng.random_range(0..FILE_BYTES_MAX);
        let on = OpenOptions::new().write(true).open(self.at(&path)).unwrap();
        on.set_len(len as u64).unwrap();
        on.sync_all().unwrap();
        self.files.get_mut(&self.paths[&path]).unwrap().resize(len, 0);
        self.promise(&names);
        "truncate"
    }

    /// To a name that is free, or in the place of another file.
    fn rename(&mut self) -> &'static str {
        let Some(path) = self.any_file() else {
            return "nothing";
        };
        let target = self.any_name();
        // Two names of one file: rename does nothing then.
        if self.paths.get(&target) == self.paths.get(&path) {
            return "nothing";
        }
        let both = [path.clone(), target.clone()];
        self.touch(&both);
        fs::rename(self.at(&path), self.at(&target)).unwrap();
        self.sync_folders(&both);
        let file = self.paths.remove(&path).unwrap();
        self.paths.insert(target, file);
        self.promise(&both);
        "rename"
    }

    fn link(&mut self) -> &'static str {
        let Some(path) = self.any_file() else {
            return "nothing";
        };
        let target = self.any_name();
        if self.paths.contains_key(&target) {
            return "nothing";
        }
        let target = [target];
        self.touch(&target);
        fs::hard_link(self.at(&path), self.at(&target[0])).unwrap();
        self.sync_folders(&target);
        self.paths.insert(target[0].clone(), self.paths[&path]);
        self.promise(&target);
        "link"
    }

    fn unlink(&mut self) -> &'static str {
        let Some(path) = self.any_file() else {
            return "nothing";
        };
        let path = [path];
        self.touch(&path);
        fs::remove_file(self.at(&path[0])).unwrap();
        self.sync_folders(&path);
        self.paths.remove(&path[0]);
        self.promise(&path);
        "unlink"
    }
}

/// Files, folders and names that come and go and are never synced, until `end`.
pub fn loose(root: &Path, mut rng: StdRng, end: &AtomicBool) {
    let root = root.join("loose");
    while !end.load(Ordering::Relaxed) {
        let folder = root.join(format!("d{}", rng.random_range(0..6)));
        let _ = fs::create_dir(&folder);
        let name = |rng: &mut StdRng| folder.join(format!("f{}", rng.random_range(0..30)));
        let (one, other) = (name(&mut rng), name(&mut rng));
        // Whatever is in the way fails; so does a full disk, and that is a load as well.
        let _ = match rng.random_range(0..9) {
            0..4 => fs::write(&one, vec![b'x'; rng.random_range(0..20_000)]),
            4 => fs::rename(&one, &other),
            5 => fs::hard_link(&one, &other),
            6 => std::os::unix::fs::symlink(&one, &other),
            7 => fs::remove_file(&one),
            _ => fs::remove_dir_all(&folder),
        };
        thread::sleep(Duration::from_millis(rng.random_range(0..6)));
    }
}
