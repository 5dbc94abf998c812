//! A person's word on a case that waits for one.

use cleanroom_controller::flow::approval::{self, Decision};

use super::{FAILED, PARTIAL, Shape, Usage, print, say, session::Opening};
use crate::{cli::Approve, output, terminal};

/// Shows what is asked, asks on the terminal, and gives the answer.
pub(super) async fn approve(opening: &Opening, args: &Approve, shape: Shape) -> anyhow::Result<u8> {
    let session = opening.open(None, args.case.as_str()).await?;
    let run = session.quiet()?;
    let (case, question) = approval::question(&run, &args.case).await?;
    let text = if shape.is_human() {
        output::question(&question, shape.palette, shape.width)
    } else {
        output::record("question", &question)
    };
    print(&text)?;
    let decision = if args.refuse { Decision::Leave } else { Decision::Contain };
    if !args.yes {
        if !terminal::can_ask() {
            let why = "there is no terminal to ask on: give --yes; nothing was answered";
            return Err(Usage(why.to_owned()).into());
        }
        let asked = if args.refuse { "Leave it as it is" } else { "Contain it" };
        if !terminal::ask(&format!("{asked}: {}?", question.instance)) {
            say("nothing was answered");
            return Ok(FAILED);
        }
    }
    let given = approval::answer(&run, &case, (decision, args.reason.as_deref())).await;
    let waiting = case.journal.catch_up().await;
    let text = if shape.is_human() {
        output::given(&given, shape.width)
    } else {
        output::record("answered", &given)
    };
    print(&text)?;
    if waiting > 0 {
        say(&format!("note: {waiting} events wait on this machine for the bucket"));
    }
    Ok(if waiting > 0 || !given.untold.is_empty() { PARTIAL } else { 0 })
}
