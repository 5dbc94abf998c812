//! Stand-in until approval is merged.
use crate::{
    case::Case,
    execution::{Failed, Input},
};
/// Decision.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "stand-in")]
pub enum Decision {
    Contain,
    Leave,
}
pub(crate) enum Due {
    Decided(Decision),
    Wait { seconds: u64 },
}
pub(crate) async fn needed(_: &Case, _: &Input) -> Vec<String> {
    Vec::new()
}
pub(crate) async fn due(_: &Case, _: &Input, _: u64) -> Due {
    if true { Due::Decided(Decision::Contain) } else { Due::Wait { seconds: 60 } }
}
pub(crate) async fn ask(_: &Case, _: &Input, _: (u64, &str)) -> Result<(), Failed> {
    Ok(())
}
