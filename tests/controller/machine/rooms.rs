//! Clean rooms that the state machine has made: one, several side by side, and those that come to nothing.

use std::time::Duration;

use cleanroom_cloud_fake::{RoomEnds, World};
use cleanroom_controller::{case::Policy, execution::Ask, flow::single, journal::verify};
use serde_json::json;

use super::{Fate, Functions, case, done, ledger};
use crate::{
    room::several,
    support::{assert_contained, everything, run, suspect},
};

#[test]
fn a_room_is_launched_awaited_and_read_back() {
    let mut world = World::full();
    world.add_agent();
    let mut functions = Functions::new(&world, Policy::default());
    let cloud = functions.cloud.clone();
    let walk = functions.walk();
    assert_eq!(walk.ended, done(), "{:#?}", functions.invoked);
    let invoked = functions.invoked.borrow();
    let read = invoked.iter().rfind(|(state, _)| state == "Read back").expect("it is read back");
    assert_eq!(read.1["going"], false, "{invoked:#?}");
    assert!(read.1["scan"].is_string() && read.1["findings"].is_object(), "{read:?}");
    let report = invoked.last().expect("a report").1.clone();
    assert_eq!(report["reported"], true, "{report}");
    functions.runtime.block_on(async {
        let ledger = ledger(&cloud).await;
        assert_eq!(ledger.reports.len(), 1);
        assert_eq!(ledger.shortfalls, Vec::new());
    });
    assert_eq!(cloud.with(|w| w.built.len()), 1);
}

/// The functions, for an instance of so many volumes.
fn with_volumes(count: usize) -> Functions {
    Functions::new(&several::with_volumes(count), Policy::default())
}

#[test]
fn a_case_of_many_volumes_is_examined_in_several_rooms() {
    for (volumes, rooms) in [(25, 2), (60, 3)] {
        let mut functions = with_volumes(volumes);
        let cloud = functions.cloud.clone();
        assert_eq!(functions.walk().ended, done(), "{:#?}", functions.invoked);
        let invoked = functions.invoked.borrow();
        let preserved = invoked.iter().rfind(|(state, _)| state == "Preserve").expect("it is");
        assert_eq!(preserved.1["rooms"].as_array().map(Vec::len), Some(rooms), "{preserved:?}");
        assert_eq!(invoked.last().expect("a report").1["reported"], true);
        functions.runtime.block_on(async {
            several::assert_examined(&cloud, rooms, &format!("{volumes} volumes")).await;
            let verdict = verify::verify(&*cloud.cloud().store, &case()).await.expect("the store");
            assert!(verdict.faults.is_empty(), "{:#?}", verdict.faults);
        });
        assert_eq!(cloud.with(|w| w.built.len()), rooms);
    }
}

#[test]
fn whatever_becomes_of_a_step_of_several_rooms_nothing_is_forgotten() {
    for state in ["Preserve", "Order", "Clean room", "Read back", "Report"] {
        for fate in [Fate::Crash, Fate::Lost, Fate::Throttled] {
            let what = format!("{state} {fate:?}");
            let mut functions = with_volumes(25);
            let cloud = functions.cloud.clone();
            functions.fate = Some((state.to_owned(), fate));
            functions.walk();
            functions.runtime.block_on(async {
                let ledger = ledger(&cloud).await;
                // What is not examined is told, unless nobody is left who could.
                let whole = ledger.newest_reports().len() == 2;
                let told = !ledger.shortfalls.is_empty() || ["Preserve", "Report"].contains(&state);
                assert!(whole || told, "{what}: {ledger:#?}");
            });
            functions.fate = None;
            assert_eq!(functions.walk().ended, done(), "{what}");
            functions.runtime.block_on(several::assert_examined(&cloud, 2, &what));
            assert_eq!(cloud.with(|w| w.built.len() + w.buried.len()), 2, "{what}");
        }
    }
}

#[test]
fn rooms_of_one_case_are_worked_at_side_by_side() {
    let mut functions = with_volumes(25);
    let cloud = functions.cloud.clone();
    // It is stopped before any room is ordered.
    functions.fate = Some(("Order".to_owned(), Fate::Crash));
    functions.walk();
    functions.runtime.block_on(async {
        let step = async |step: &str, n: u32| {
            let asked = json!({
                "step": step, "instance": suspect(), "case": case(), "open": {"case": case()},
                "group": {"n": n}, "token": format!("token-{n}"), "looked": {"round": 1},
            });
            let ask: Ask = serde_json::from_value(asked).expect("an ask");
            single::perform(&run(&cloud, Policy::default(), None).await, &ask).await
        };
        let (one, two) = tokio::join!(step("order", 1), step("order", 2));
        assert_eq!(
            (&one.expect("it")["room"], &two.expect("it")["room"]),
            (&json!(true), &json!(true))
        );
        let (one, two) = tokio::join!(step("clean_room", 1), step("clean_room", 2));
        assert!(one.is_ok() && two.is_ok(), "{one:?} {two:?}");
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let (one, two) = tokio::join!(step("read_back", 1), step("read_back", 2));
        let (one, two) = (one.expect("it is read"), two.expect("it is read"));
        assert!(one["scan"].is_string() && two["scan"].is_string(), "{one} {two}");
        assert_ne!(one["scan"], two["scan"]);
        let tokens: Vec<_> =
            several::all_orders(&cloud).into_iter().map(|o| (o.room, o.task_token)).collect();
        let token = |n: u32| (n, Some(format!("token-{n}")));
        assert_eq!(tokens, [token(1), token(2)], "each room ends its own task");
        assert_eq!(ledger(&cloud).await.newest_reports().len(), 2);
    });
}

#[test]
fn a_room_that_fails_is_told_of_and_costs_nothing_else() {
    let mut world = World::full();
    world.add_agent();
    world.room.ends = RoomEnds::Fails("no disks".to_owned());
    let mut functions = Functions::new(&world, everything());
    let cloud = functions.cloud.clone();
    let walk = functions.walk();
    assert_eq!(walk.ended, done(), "{:#?}", functions.invoked);
    functions.runtime.block_on(async {
        assert_contained(&cloud, &world, "a room that fails").await;
        let ledger = ledger(&cloud).await;
        assert!(!ledger.shortfalls.is_empty() && ledger.reports.is_empty(), "{ledger:#?}");
    });
}
