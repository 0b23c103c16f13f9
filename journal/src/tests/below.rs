//! One level down: the real store and real files, on a file system that loses what was not synced (`testkit::SimFiles`).
//!
//! The histories are those of [`super::crash`]; here the syncs are RocksDB's own, also those of its threads, and what a cut
//! leaves of its files it has to make sense of itself.

use super::{
    crash::{Book, SCRIPT, check, random_history, restart, start, step},
    *,
};
use rand::{Rng, RngCore};
use testkit::{
    proc::root_for,
    sim::{Order, Tear},
    with_seeds,
};

fn lab(order: Order, rng: &mut dyn RngCore) -> Lab {
    let lab = Lab::below();
    lab.power
        .set_tear([Tear::Sector, Tear::Byte, Tear::Bit][rng.random_range(0..3)]);
    lab.power.files(FILES).set_order(order);
    lab
}

/// `fsck-journal` finds nothing in what a crash leaves. Answers whether the journal can be opened: RocksDB needs a file system
/// that keeps the order of things. Where the last record of its list of files has a gap, or that list is named and not there, it
/// does not start, and says so.
fn is_sound(lab: &Lab, order: Order) -> bool {
    let folder = lab.folder().expect("a journal in files");
    let checked = crate::check::check(&folder, &lab.options, &mut |_, _, _| {}).unwrap();
    if !checked.findings.is_damaged() {
        return true;
    }
    let [finding] = checked.findings.all.as_slice() else {
        panic!("{:?}", checked.findings.all);
    };
    let (why, too) = (
        finding.what.clone(),
        lab.open().map(drop).unwrap_err().to_string(),
    );
    for text in [why, too] {
        assert!(order == Order::Any && text.contains("MANIFEST-"), "{text}");
    }
    false
}

/// A fixed history, cut at every sync of the store and its files.
#[test]
fn a_cut_at_every_sync_below_the_store() {
    if !root_for("a journal on a file system that loses what was not synced") {
        return;
    }
    let (mut cuts, mut in_any_order, mut refused, mut ended) = (0, 0, 0, false);
    for n in 1.. {
        with_seeds(&format!("below: sync {n}"), 1, |rng| {
            let order = [Order::Any, Order::Kept][rng.random_range(0..2)];
            let lab = lab(order, rng);
            let mut book = Book::default();
            {
                let j = start(&lab);
                lab.power.freeze_at(n);
                ended = SCRIPT.iter().all(|what| step(&j, &mut book, *what, rng).is_ok());
            }
            restart(&lab, rng);
            cuts += 1;
            in_any_order += u32::from(order == Order::Any);
            if !is_sound(&lab, order) {
                refused += 1;
                return;
            }
            let j = check(&lab, &mut book);
            for what in [0, 10, 13, 14, 15, 10] {
                step(&j, &mut book, what, rng).unwrap();
            }
        });
        if ended {
            break;
        }
    }
    println!(
        "{cuts} cuts at syncs of a journal and its store, {in_any_order} of them in any order, of which {refused} left what RocksDB does not open and says"
    );
    assert!(cuts > 80, "only {cuts} syncs");
}

/// What a first start leaves that is cut at any of its syncs is begun again, and nothing of it is called damage.
#[test]
fn a_cut_at_every_sync_of_a_first_start_below_the_store() {
    if !root_for("a journal on a file system that loses what was not synced") {
        return;
    }
    let (mut cuts, mut ended) = (0, false);
    for n in 1.. {
        with_seeds(&format!("below: first start, sync {n}"), 2, |rng| {
            let lab = lab(Order::Kept, rng);
            lab.power.freeze_at(n);
            let first = |lab: &Lab| -> Result<(), JournalError> {
                let (j, _) = lab.open()?;
                if j.current_generation().is_none() {
                    j.create_generation(NewGeneration::own(GenId(0xA1), None))?;
                }
                fill(&j, 1, 100);
                j.sync()?;
                Ok(())
            };
            ended = first(&lab).is_ok();
            lab.power.cut(rng);
            let (j, _) = lab.open().unwrap();
            let durable = j.cursors().durable;
            assert!(!ended || durable == WriteSeq(1));
            drop(j);
            lab.power.kill(rng);
            first(&lab).unwrap();
            lab.power.cut(rng);
            assert!(is_sound(&lab, Order::Kept));
            assert_eq!(lab.open().unwrap().0.cursors().durable, durable.next());
            cuts += 1;
        });
        if ended {
            break;
        }
    }
    println!("{cuts} cuts at syncs of first starts");
    assert!(cuts > 30, "only {cuts} syncs");
}

#[test]
fn random_histories_with_crashes_below_the_store() {
    if !root_for("a journal on a file system that loses what was not synced") {
        return;
    }
    let mut crashes = 0;
    let tried = with_seeds("below: random histories", 4, |rng| {
        crashes += random_history(&lab(Order::Kept, rng), 120, rng);
    });
    println!("{tried} random histories, {crashes} crashes at syncs of a journal and its store");
}
