//! What a scan says of dirty journals.
//!
//! Purpose: the gaps, and the end of a view. Touches nothing but what a view holds. Never decides whether a
//! journal is replayed.

use cleanroom_contract::{Gap, GapKind, printable};

use crate::{
    evidence::view::{Unreplayed, View},
    walk,
};

/// The gap of a journal that is not replayed.
pub(super) fn unreplayed(volume: &str, unreplayed: &Unreplayed) -> Gap {
    let why = &unreplayed.why;
    let mut reason = format!("the journal holds changes that were not replayed: {why}");
    let advice = match &unreplayed.why_not {
        None => "what was written last may be missing or old here: scan it without --no-replay",
        Some(why_not) => {
            reason.push_str("; ");
            reason.push_str(&printable(why_not));
            "what was written last may be missing or old here: mend the cause (--scratch names a folder with \
             more space), or replay it on a copy and scan that"
        }
    };
    let mut gap = walk::gap(GapKind::UnreplayedJournal, volume, None, reason);
    gap.advice = Some(advice.to_owned());
    gap
}

/// The gap of a view that broke while it was scanned.
pub(super) fn broken(volume: &str, trouble: &str) -> Gap {
    let reason = format!(
        "the copy-on-write view broke while it was scanned, and some of what was seen may be wrong: {}",
        printable(trouble)
    );
    let mut gap = walk::gap(GapKind::UnreplayedJournal, volume, None, reason);
    let advice = "scan again with more scratch (--scratch), or with --no-replay what is stored";
    gap.advice = Some(advice.to_owned());
    gap
}

/// Takes a view down, and says what was wrong with what it was seen through.
pub(super) async fn close(view: View) -> Option<String> {
    let View { root, layer, .. } = view;
    let mut layer = layer?;
    // An overlay ends once nothing is mounted on it: what it died of is asked before.
    let trouble = layer.trouble();
    drop(root);
    layer.end().await;
    trouble
}
