//! What the commands on a case take. Touches nothing.

use std::path::PathBuf;

use clap::Args;
use cleanroom_contract::{CaseId, ScanId};
use cleanroom_controller::steps::revoke::principal::Principal;

use super::Room;

#[derive(Debug, Args)]
pub(crate) struct Fetch {
    /// The case.
    pub case: CaseId,

    /// The scan [default: the newest of each of the case's rooms that was read back into the custody log].
    #[arg(long, value_name = "SCAN")]
    pub scan: Option<ScanId>,

    /// The folder; each bundle in its own, room-N, where the case has several rooms [default: ./CASE-SCAN].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Rescan {
    /// The case.
    pub case: CaseId,

    #[command(flatten)]
    pub room: Room,
}

#[derive(Debug, Args)]
pub(crate) struct Teardown {
    /// The case.
    pub case: CaseId,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Approve {
    /// The case.
    pub case: CaseId,

    /// Leave the instance as it is, preserved and watched.
    #[arg(long)]
    pub refuse: bool,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,

    /// Why, for the custody log.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Release {
    /// The case.
    pub case: CaseId,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,

    /// Release although something is not as the response left it.
    #[arg(long)]
    pub force: bool,

    /// Why, for the custody log.
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Role, user or assumed role.
    #[arg(long, value_name = "ARN", value_parser = principal)]
    pub principal: Named,

    /// The case in whose custody log this belongs.
    #[arg(long, value_name = "CASE")]
    pub case: Option<CaseId>,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

/// A principal, and the ARN that named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub arn: String,
    pub principal: Principal,
}

fn principal(text: &str) -> Result<Named, String> {
    let principal = text.parse().map_err(|error| format!("{error}"))?;
    Ok(Named { arn: text.to_owned(), principal })
}
