//! What `deploy` and `drill` take. Touches nothing.

use std::path::PathBuf;

use clap::Args;
use cleanroom_contract::CaseId;
use cleanroom_controller::flow::drill::INSTANCE_TYPE;

use super::Via;

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// Folder with cleanroom-agent and cleanroom-lambda.zip, and with SHA256SUMS where digests are to be compared:
    /// cargo package-release makes it.
    #[arg(long, value_name = "DIR", required_unless_present = "delete")]
    pub artifacts: Option<PathBuf>,

    /// Offline bundle of tools for investigators, which rooms unpack: cargo package-tools makes it.
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,

    /// YARA rules of scans for which nobody names others: a file, or a folder of them. May be given several times
    /// [default: those that --settings names, else those that are there].
    #[arg(long, value_name = "PATH", conflicts_with = "delete")]
    pub rules: Vec<PathBuf>,

    /// Indicator lists, likewise.
    #[arg(long, value_name = "PATH", conflicts_with = "delete")]
    pub indicators: Vec<PathBuf>,

    /// Upload agent, tools, rules and indicators alone, into the evidence bucket that is configured; the response stack stays as it is.
    #[arg(long, conflicts_with_all = ["settings", "parameters", "artifacts_bucket", "delete"])]
    pub agent_only: bool,

    /// Settings of the response stack's functions [default: those that it has].
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,

    /// Parameter of the response stack [default: what it has]. May be given several times.
    #[arg(long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,

    /// Bucket of programs, state machines and template [default: what the stack has, else
    /// cleanroom-artifacts-ACCOUNT-REGION; made where it is not there].
    #[arg(long, value_name = "NAME")]
    pub artifacts_bucket: Option<String>,

    /// Role in which people respond and release, for the policy that reserves tags. May be given several times.
    #[arg(long, value_name = "ROLE_ARN")]
    pub exempt: Vec<String>,

    /// Delete the response stack. Evidence, its key and the logs stay.
    #[arg(long, conflicts_with_all = ["artifacts", "tools", "settings", "parameters", "artifacts_bucket", "exempt"])]
    pub delete: bool,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("give NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

#[derive(Debug, Args)]
pub(crate) struct Drill {
    /// Subnet of the instance [default: one of the default VPC].
    #[arg(long, value_name = "SUBNET")]
    pub subnet: Option<String>,

    /// Type of the instance.
    #[arg(long, value_name = "TYPE", default_value = INSTANCE_TYPE)]
    pub instance_type: String,

    /// AMI of the instance [default: Amazon's newest Amazon Linux 2023].
    #[arg(long, value_name = "AMI")]
    pub image_id: Option<String>,

    /// Who responds. The state machine is started as an alert starts it, so that a drill proves that door too.
    #[arg(long, value_name = "WHERE", default_value = "here")]
    pub via: Via,

    /// Leave everything as the response left it; --clean takes it away later.
    #[arg(long)]
    pub keep: bool,

    /// Launch nothing: take away what an earlier drill left. An execution of it that still runs is followed to its end first.
    #[arg(long, value_name = "CASE", conflicts_with_all = ["subnet", "instance_type", "image_id", "via", "keep"])]
    pub clean: Option<CaseId>,

    /// Do not ask.
    #[arg(long)]
    pub yes: bool,
}
