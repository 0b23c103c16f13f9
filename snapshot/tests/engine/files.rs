//! The same on real files.

use model::{ByteRange, GenNo, LfcId, Ordinal, VolumeIndex, WriteSeq, ports::History};
use snapshot::{ChangeSet, Lfc, Overlay, Vdev, View, Volumes, apply};
use std::sync::Arc;

use crate::{
    history::MemHistory,
    world::{World, quiet, write},
};
use media::{Create, FileMedium};

#[test]
fn views_and_vdevs_on_sparse_files() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str, len| {
        let path = dir.path().join(name);
        Arc::new(FileMedium::open(&path, Create::Sparse(len)).unwrap())
    };
    let size = (8 << 20) + 77;
    let mut volumes = Volumes::new();
    volumes
        .insert(VolumeIndex(0), "data", open("volume", size), size)
        .unwrap();
    let history = Arc::new(MemHistory::new(&testkit::SimPower::new()));
    let mut twin = World::new(&[size]);
    twin.receive(vec![write(0, 1 << 20, b'a', 9000), write(0, size - 3, b'b', 3)]);
    let changes: ChangeSet = twin.waiting[0].1.iter().collect();
    let lfc = Lfc {
        generation: GenNo(1),
        lfc: LfcId(2),
        last_seq: WriteSeq(2),
    };
    let view = View::new(
        twin.points[0].0.clone(),
        volumes.sizes(),
        volumes.clone(),
        Arc::clone(&history) as Arc<dyn History>,
    )
    .unwrap();
    apply(&volumes, &*history, lfc, Ordinal(0), &changes, &mut quiet).unwrap();
    let all = ByteRange::at(0, size);
    assert_eq!(view.extents(VolumeIndex(0), all).unwrap().len(), 1);
    let mut bytes = vec![1; size as usize];
    view.read(VolumeIndex(0), 0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|b| *b == 0));

    let (slots, view) = (100 * 4096, Arc::new(view));
    let vdev = |create| {
        let (data, log) = (open("data", slots), open("log", Overlay::log_len(slots)));
        let overlay = if create {
            Overlay::create(data, log, 7)
        } else {
            Overlay::open(data, log, 7)
        };
        Vdev::new(Arc::clone(&view), overlay.unwrap())
    };
    let first = vdev(true);
    first.write(VolumeIndex(0), size - 5000, &[b'w'; 5000]).unwrap();
    first.zero(VolumeIndex(0), size - 10, 10).unwrap();
    first.flush().unwrap();
    drop(first);
    let second = vdev(false);
    let mut tail = [0; 20];
    second.read(VolumeIndex(0), size - 20, &mut tail).unwrap();
    assert_eq!(&tail[..10], b"wwwwwwwwww");
    assert_eq!(tail[10..], [0; 10]);
}
