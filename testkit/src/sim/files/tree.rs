//! Files and folders: what each operation of a file system changes, and what a power cut leaves of it.

use super::{
    super::tear::Tear,
    Order,
    content::{Content, Durable},
    names::{Entries, Names},
};
use model::ByteRange;
use rand::RngCore;
use rustix::io::Errno;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    time::SystemTime,
};

/// The number of the outermost folder.
pub(super) const ROOT: u64 = 1;

/// The longest file, bytes.
const LEN_MAX: u64 = 1 << 40;

#[derive(Debug)]
pub(super) enum Kind {
    File(Content),
    Folder(Names),
    /// A name by which processes meet; there is nothing in it to be lost.
    Socket,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) permissions: u16,
    pub(super) links: u32,
    pub(super) changed: SystemTime,
    /// How often it is open.
    open: u64,
}

impl Node {
    fn new(kind: Kind, permissions: u16) -> Self {
        Self {
            kind,
            permissions,
            links: 0,
            changed: SystemTime::now(),
            open: 0,
        }
    }
}

/// The outermost folder, which nothing names.
fn root(names: Names, permissions: u16) -> Node {
    let mut root = Node::new(Kind::Folder(names), permissions);
    root.links = 1;
    root
}

/// What of a node is durable.
#[derive(Clone, Debug)]
enum Kept {
    File(Durable),
    Folder(Entries),
    Socket,
}

/// What a power cut leaves of a tree: of each node its kind and permissions.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct TreeImage {
    nodes: BTreeMap<u64, (Kept, u16)>,
}

/// The files and folders of one file system.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
}

type Done<T = ()> = Result<T, Errno>;

impl Tree {
    pub(super) fn new() -> Self {
        Self {
            nodes: BTreeMap::from([(ROOT, root(Names::default(), 0o755))]),
            next: ROOT + 1,
        }
    }

    pub(super) fn node(&self, node: u64) -> Done<&Node> {
        self.nodes.get(&node).ok_or(Errno::NOENT)
    }

    pub(super) fn node_mut(&mut self, node: u64) -> Done<&mut Node> {
        self.nodes.get_mut(&node).ok_or(Errno::NOENT)
    }

    fn folder(&mut self, node: u64) -> Done<&mut Names> {
        match &mut self.node_mut(node)?.kind {
            Kind::Folder(names) => Ok(names),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn file(&mut self, node: u64) -> Done<&mut Content> {
        let node = self.node_mut(node)?;
        match &mut node.kind {
            Kind::File(content) => Ok(content),
            Kind::Folder(_) => Err(Errno::ISDIR),
            Kind::Socket => Err(Errno::NXIO),
        }
    }

    /// The same, to be changed.
    fn changing(&mut self, node: u64) -> Done<&mut Content> {
        self.node_mut(node)?.changed = SystemTime::now();
        self.file(node)
    }

    pub(super) fn find(&self, folder: u64, name: &OsStr) -> Done<u64> {
        match &self.node(folder)?.kind {
            Kind::Folder(names) => names.get(name).ok_or(Errno::NOENT),
            _ => Err(Errno::NOTDIR),
        }
    }

    /// Number and name of everything in a folder.
    pub(super) fn list(&self, folder: u64) -> Done<Vec<(u64, OsString)>> {
        let Kind::Folder(names) = &self.node(folder)?.kind else {
            return Err(Errno::NOTDIR);
        };
        let entries = names.live().iter();
        Ok(entries.map(|(name, node)| (*node, name.clone())).collect())
    }

    pub(super) fn make(&mut self, folder: u64, name: &OsStr, kind: Kind, permissions: u16) -> Done<u64> {
        let number = self.next;
        self.put(folder, name, number)?;
        self.next += 1;
        let mut node = Node::new(kind, permissions);
        node.links = 1;
        self.nodes.insert(number, node);
        Ok(number)
    }

    fn put(&mut self, folder: u64, name: &OsStr, node: u64) -> Done {
        let names = self.folder(folder)?;
        if names.get(name).is_some() {
            return Err(Errno::EXIST);
        }
        names.change(vec![(name.to_owned(), Some(node))]);
        Ok(())
    }

    /// Another name for a file.
    pub(super) fn link(&mut self, file: u64, folder: u64, name: &OsStr) -> Done {
        self.file(file)?;
        self.put(folder, name, file)?;
        self.node_mut(file)?.links += 1;
        Ok(())
    }

    /// Takes a name away: of a file, or of an empty folder.
    pub(super) fn remove(&mut self, folder: u64, name: &OsStr, is_folder: bool) -> Done {
        let node = self.find(folder, name)?;
        match (&self.node(node)?.kind, is_folder) {
            (Kind::File(_) | Kind::Socket, true) => return Err(Errno::NOTDIR),
            (Kind::Folder(_), false) => return Err(Errno::ISDIR),
            (Kind::Folder(names), true) if !names.live().is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        self.folder(folder)?.change(vec![(name.to_owned(), None)]);
        self.node_mut(node)?.links -= 1;
        Ok(())
    }

    /// Renames within a folder. From one folder to another it is refused, as between file systems: nothing that is tested here
    /// does that, and what a cut may leave of it differs from one file system to the next.
    pub(super) fn rename(
        &mut self,
        folder: u64,
        from: &OsStr,
        to_folder: u64,
        to: &OsStr,
        replace: bool,
    ) -> Done {
        let node = self.find(folder, from)?;
        if folder != to_folder {
            return Err(Errno::XDEV);
        }
        let replaced = match self.find(folder, to) {
            Ok(_) if !replace => return Err(Errno::EXIST),
            Ok(other) if other == node => return Ok(()),
            Ok(other) => Some(other),
            Err(_) => None,
        };
        if let Some(other) = replaced {
            match (&self.node(node)?.kind, &self.node(other)?.kind) {
                (Kind::File(_) | Kind::Socket, Kind::Folder(_)) => return Err(Errno::ISDIR),
                (Kind::Folder(_), Kind::File(_) | Kind::Socket) => return Err(Errno::NOTDIR),
                (_, Kind::Folder(names)) if !names.live().is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            }
            self.node_mut(other)?.links -= 1;
        }
        let change = vec![(from.to_owned(), None), (to.to_owned(), Some(node))];
        self.folder(folder)?.change(change);
        Ok(())
    }

    pub(super) fn opened(&mut self, node: u64) -> Done {
        self.node_mut(node)?.open += 1;
        Ok(())
    }

    pub(super) fn closed(&mut self, node: u64) {
        if let Ok(node) = self.node_mut(node) {
            node.open = node.open.saturating_sub(1);
        }
    }

    pub(super) fn read(&mut self, file: u64, at: u64, len: u64) -> Done<Vec<u8>> {
        Ok(self.file(file)?.read(at, len))
    }

    pub(super) fn write(&mut self, file: u64, at: u64, data: &[u8]) -> Done {
        if at.saturating_add(data.len() as u64) > LEN_MAX {
            return Err(Errno::FBIG);
        }
        self.changing(file)?.write(at, data);
        Ok(())
    }

    pub(super) fn zero(&mut self, file: u64, range: ByteRange) -> Done {
        self.changing(file)?.zero(range);
        Ok(())
    }

    pub(super) fn set_len(&mut self, file: u64, len: u64) -> Done {
        if len > LEN_MAX {
            return Err(Errno::FBIG);
        }
        self.changing(file)?.set_len(len);
        Ok(())
    }

    pub(super) fn len(&self, node: u64) -> Done<u64> {
        Ok(match &self.node(node)?.kind {
            Kind::File(content) => content.len(),
            Kind::Folder(_) | Kind::Socket => 0,
        })
    }

    /// Makes the bytes and length of a file durable, or the names in a folder; not the name of either in its own folder.
    pub(super) fn sync(&mut self, node: u64) -> Done {
        match &mut self.node_mut(node)?.kind {
            Kind::File(content) => content.sync(),
            Kind::Folder(names) => {
                names.sync();
                self.forget();
            }
            Kind::Socket => {}
        }
        Ok(())
    }

    /// Makes everything durable.
    pub(super) fn sync_all(&mut self) {
        for node in self.nodes.values_mut() {
            match &mut node.kind {
                Kind::File(content) => content.sync(),
                Kind::Folder(names) => names.sync(),
                Kind::Socket => {}
            }
        }
        self.forget();
    }

    /// Forgets what nobody names any more, also after a power cut, and nobody has open.
    fn forget(&mut self) {
        let mut wanted = BTreeSet::from([ROOT]);
        for node in self.nodes.values() {
            if let Kind::Folder(names) = &node.kind {
                wanted.extend(names.named());
            }
        }
        self.nodes.retain(|n, node| node.open > 0 || wanted.contains(n));
    }

    /// Nobody has anything open any more.
    pub(super) fn close_all(&mut self) {
        self.nodes.values_mut().for_each(|node| node.open = 0);
    }

    /// What a power cut now would leave for certain.
    pub(super) fn durable(&self) -> TreeImage {
        self.image(&mut |kind| match kind {
            Kind::File(content) => Kept::File(content.durable()),
            Kind::Folder(names) => Kept::Folder(names.durable().clone()),
            Kind::Socket => Kept::Socket,
        })
    }

    /// A power cut: each file and each folder for itself.
    pub(super) fn cut(&mut self, tear: Tear, order: Order, rng: &mut dyn RngCore) {
        let image = self.image(&mut |kind| match kind {
            Kind::File(content) => Kept::File(content.after_cut(tear, order, rng)),
            Kind::Folder(names) => Kept::Folder(names.after_cut(order, rng)),
            Kind::Socket => Kept::Socket,
        });
        self.become_image(image);
    }

    fn image(&self, kept: &mut dyn FnMut(&Kind) -> Kept) -> TreeImage {
        let nodes = self.nodes.iter();
        let nodes = nodes.map(|(n, node)| (*n, (kept(&node.kind), node.permissions)));
        TreeImage {
            nodes: nodes.collect(),
        }
    }

    /// What cannot be reached any more goes.
    pub(super) fn become_image(&mut self, mut image: TreeImage) {
        let mut nodes = Self::new().nodes;
        let mut folders = vec![ROOT];
        while let Some(folder) = folders.pop() {
            let Some((Kept::Folder(entries), permissions)) = image.nodes.remove(&folder) else {
                continue;
            };
            for named in entries.values() {
                let Some((kept, permissions)) = image.nodes.get(named) else {
                    continue;
                };
                let kind = match kept {
                    Kept::Folder(entries) => {
                        folders.push(*named);
                        Kind::Folder(Names::of(entries.clone()))
                    }
                    Kept::File(durable) => Kind::File(Content::of(durable.clone())),
                    Kept::Socket => Kind::Socket,
                };
                let node = nodes.entry(*named);
                node.or_insert_with(|| Node::new(kind, *permissions)).links += 1;
            }
            if folder == ROOT {
                nodes.insert(ROOT, root(Names::of(entries), permissions));
            }
        }
        self.nodes = nodes;
    }
}
