//! What a response comes to where functions crash, hang and are throttled, calls fail, and people interfere.

use std::sync::PoisonError;

use cleanroom_harness::response::StepFault;

use super::scene::{Suspect, rough};

/// Waits until its volume has a snapshot.
fn is_snapshotted(suspect: &Suspect) {
    let volume = &suspect.volume;
    let action =
        format!("Action=DescribeSnapshots&Filter.1.Name=volume-id&Filter.1.Value.1={volume}");
    suspect.scene.wait("a snapshot", || {
        let told = suspect.stack().ec2(&action).expect("snapshots");
        told.contains("<snapshotId>").then_some(())
    });
}

#[test]
fn steps_that_crash_lose_their_answer_or_hang_change_nothing_in_the_end() {
    let scene = rough();
    let _shared = scene.functions.read().unwrap_or_else(PoisonError::into_inner);
    let suspect = scene.suspect();
    for (step, fault) in [
        ("open", StepFault::Lose),
        ("verify", StepFault::Hang),
        ("snapshot", StepFault::Lose),
        ("isolate", StepFault::Crash),
        ("record", StepFault::Crash),
    ] {
        suspect.stack().fault(&suspect.instance, step, fault, 1).expect("a fault");
    }
    suspect.alert();
    suspect.succeeded(1);
    assert!(!suspect.stack().faults_left(&suspect.instance), "every fault happened");
    let entered = suspect.stack().entered(&suspect.case).expect("a history");
    assert!(entered.iter().any(|state| state == "Contain only"), "{entered:?}");
    let state = suspect.state();
    assert!(suspect.is_isolated(&state), "{:#}", state["interfaces"]);
    suspect.assert_preserved(&state);
}

#[test]
fn a_function_that_is_throttled_for_good_leaves_an_instance_contained() {
    let scene = rough();
    let suspect = scene.suspect();
    // Nobody else gets through meanwhile.
    let _alone = scene.functions.write().unwrap_or_else(PoisonError::into_inner);
    suspect.stack().throttle(true).expect("throttle");
    suspect.alert();
    suspect.enters(1, "Contain only");
    suspect.enters(1, "After");
    let contained = suspect.is_isolated(&suspect.state());
    suspect.stack().throttle(false).expect("let through");
    assert!(contained, "by the function that does nothing else");
    suspect.succeeded(1);
    suspect.assert_preserved(&suspect.state());
}

#[test]
fn an_instance_that_is_terminated_half_way_still_has_its_evidence() {
    let scene = rough();
    let _shared = scene.functions.read().unwrap_or_else(PoisonError::into_inner);
    let suspect = scene.suspect();
    suspect.stack().fault(&suspect.instance, "prepare", StepFault::Hang, 1).expect("a fault");
    suspect.alert();
    is_snapshotted(&suspect);
    // Whoever may, takes the guard away, and again where it was put up in between.
    let id = &suspect.instance;
    let unguard =
        format!("Action=ModifyInstanceAttribute&InstanceId={id}&DisableApiTermination.Value=false");
    let terminate = format!("Action=TerminateInstances&InstanceId.1={id}");
    suspect.scene.wait("it to be terminated", || {
        suspect.stack().ec2(&unguard).expect("take the guard away");
        suspect.stack().ec2(&terminate).ok()
    });
    suspect.succeeded(1);
    let state = suspect.state();
    assert_eq!(state["state"], "terminated", "{state:#}");
    suspect.assert_preserved(&state);
}

#[test]
fn an_execution_that_is_stopped_contains_and_goes_on_when_it_is_asked_for_again() {
    let scene = rough();
    let _shared = scene.functions.read().unwrap_or_else(PoisonError::into_inner);
    let suspect = scene.suspect();
    suspect.stack().fault(&suspect.instance, "prepare", StepFault::Hang, 1).expect("a fault");
    suspect.alert();
    is_snapshotted(&suspect);
    suspect.stack().stop(&suspect.case).expect("stop");
    assert_eq!(suspect.ended(1).status, "ABORTED");
    suspect.scene.wait("it to be contained all the same", || {
        suspect.is_isolated(&suspect.state()).then_some(())
    });
    suspect.alert();
    suspect.succeeded(2);
    suspect.assert_contained();
}
