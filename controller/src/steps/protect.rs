//! Guards against the instance's end: several, not one.
//!
//! Termination and stop protection, a shutdown from within that stops instead of terminating, and volumes that outlive the
//! instance. Release sets each to what it was.

use async_trait::async_trait;
use cleanroom_cloud::{Change, Result};

use crate::case::{Assessment, Goal, History, Scene, Step};

/// The guards are on.
#[derive(Debug)]
pub struct Guards;

#[async_trait]
impl Goal for Guards {
    fn step(&self) -> Step {
        Step::Protect
    }

    fn name(&self) -> &'static str {
        "guards"
    }

    async fn look(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let id = &scene.instance;
        let (instance, guards) =
            tokio::join!(scene.inventory.get_instance(id), scene.inventory.guards(id));
        let instance = instance?;
        let mut seen = Assessment::default();
        if instance.state.is_ending() {
            seen.notes.push("the instance is ending: guards come too late".to_owned());
            return Ok(seen);
        }
        let guards = guards?;
        if instance.spot {
            seen.notes.push(
                "a Spot instance has neither termination nor stop protection: AWS may end it"
                    .to_owned(),
            );
        } else {
            if !guards.termination {
                seen.now.push(Change::SetTerminationProtection { instance: id.clone(), on: true });
            }
            if !guards.stop {
                seen.now.push(Change::SetStopProtection { instance: id.clone(), on: true });
            }
        }
        if guards.shutdown_terminates {
            seen.now.push(Change::SetShutdownBehavior { instance: id.clone(), terminate: false });
        }
        for volume in instance.volumes.iter().filter(|v| v.delete_on_termination) {
            seen.now.push(Change::SetDeleteOnTermination {
                instance: id.clone(),
                device: volume.device.clone(),
                volume: volume.volume.clone(),
                on: false,
            });
        }
        Ok(seen)
    }

    async fn look_back(&self, scene: &Scene, _history: &History) -> Result<Assessment> {
        let id = &scene.instance;
        let (instance, now) =
            tokio::join!(scene.inventory.get_instance(id), scene.inventory.guards(id));
        let instance = instance?;
        let mut seen = Assessment::default();
        if instance.state.is_ending() {
            return Ok(seen);
        }
        let now = now?;
        if let Some(was) = scene.original.guards.get() {
            if was.termination != now.termination {
                let on = was.termination;
                seen.now.push(Change::SetTerminationProtection { instance: id.clone(), on });
            }
            if was.stop != now.stop {
                seen.now.push(Change::SetStopProtection { instance: id.clone(), on: was.stop });
            }
            if was.shutdown_terminates != now.shutdown_terminates {
                let terminate = was.shutdown_terminates;
                seen.now.push(Change::SetShutdownBehavior { instance: id.clone(), terminate });
            }
        }
        for was in &scene.original.instance.volumes {
            let now = instance.volumes.iter().find(|v| v.volume == was.volume);
            if now.is_some_and(|now| now.delete_on_termination != was.delete_on_termination) {
                seen.now.push(Change::SetDeleteOnTermination {
                    instance: id.clone(),
                    device: was.device.clone(),
                    volume: was.volume.clone(),
                    on: was.delete_on_termination,
                });
            }
        }
        Ok(seen)
    }
}
