//! Releases: shows what it will restore, asks, restores.

use anyhow::Context as _;
use cleanroom_controller::flow::release::{self, Proposal};

use super::{
    FAILED, PARTIAL, Shape, Usage,
    hint::Hint,
    print, say,
    session::Opening,
    signals::{Ended, Signals},
};
use crate::{cli::Release, output, terminal};

/// Puts an instance back to what was recorded.
pub(super) async fn release(opening: &Opening, args: &Release, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, args.case.as_str()).await?;
    let run = session.quiet()?;
    let proposal = release::propose(&run, &args.case).await?;
    show(args, &proposal, shape)?;
    if !proposal.drift.is_empty() && !args.force {
        let found = proposal.drift.len();
        let error = anyhow::anyhow!(
            "{found} findings on case {} are not as the response left them; nothing was changed",
            args.case
        );
        let hint = "look at what is DRIFTED; release all the same with --force, or respond again";
        return Err(error.context(Hint(hint.to_owned())));
    }
    if !args.yes {
        if !terminal::can_ask() {
            let why = "there is no terminal to ask on: give --yes; nothing was changed";
            return Err(Usage(why.to_owned()).into());
        }
        if !terminal::ask(&format!("Release case {}?", args.case)) {
            say("nothing was changed");
            return Ok(FAILED);
        }
    }
    let mut signals = Signals::take().context("take over signals")?;
    let work = release::carry_out(&run, proposal, args.reason.as_deref());
    let released = match signals.guard(&run.shared, work, say).await {
        Ended::Done(released) => released?,
        Ended::Interrupted(status) => {
            say("the case stays open; release again goes on where it was");
            return Ok(status);
        }
    };
    let text = if shape.is_human() {
        output::released(&released, shape.palette, shape.width)
    } else {
        output::record("released", &released)
    };
    print(&text)?;
    Ok(if released.whole { 0 } else { PARTIAL })
}

fn show(args: &Release, proposal: &Proposal, shape: Shape) -> anyhow::Result<()> {
    let case = args.case.as_str();
    if shape.is_human() {
        return print(&output::proposal(case, proposal, shape.palette, shape.width));
    }
    let fields = serde_json::json!({
        "case": case,
        "changes": proposal.changes,
        "drift": proposal.drift,
        "short": proposal.short,
        "notes": proposal.notes,
    });
    print(&output::record("proposal", &fields))
}
