//! From words to instances: all of them before anything is acted on.

use cleanroom_cloud::Instance;
use cleanroom_contract::printable;
use cleanroom_controller::flow::find::{self, FindError};
use futures_util::{StreamExt as _, stream};

use super::{
    Usage, say,
    session::{Session, persist},
};
use crate::{
    cli::Targets,
    ids::{self, Several, Words},
};

/// How many words are looked up at a time.
const AT_ONCE: usize = 16;

/// The words that were given, none of which is garbage.
///
/// # Errors
/// Names all that are.
pub(super) fn words(targets: &Targets) -> anyhow::Result<Words> {
    // The parser can not say it: a flag that requires --file passes where an ID, which conflicts with that, is given.
    if targets.skip_bad && targets.file.is_none() {
        return Err(Usage("--skip-bad is for the lines of --file".to_owned()).into());
    }
    let words = match &targets.file {
        Some(path) => ids::of_file(path, targets.skip_bad)?,
        None => ids::of_arguments(&targets.ids)?,
    };
    for line in &words.skipped {
        say(&format!("skipped: {line}"));
    }
    Ok(words)
}

/// The instances that words name, each once, in the order of their first mention.
///
/// # Errors
/// Names every word that names no one instance, unless those are to be skipped.
pub(super) async fn resolve(
    session: &Session,
    words: &[String],
    skip_bad: bool,
) -> anyhow::Result<Vec<Instance>> {
    let looks = words.iter().map(|word| async move { (word, look(session, word).await) });
    let looks: Vec<_> = looks.collect();
    let found: Vec<_> = stream::iter(looks).buffered(AT_ONCE).collect().await;
    let mut instances: Vec<Instance> = Vec::new();
    let mut errors = Vec::new();
    for (word, found) in found {
        match found {
            Ok(found) if instances.iter().any(|known| known.id == found.id) => {
                say(&format!("{} is {} again: once is enough", printable(word), found.id));
            }
            Ok(found) => instances.push(found),
            Err(error) => errors.push((word, error)),
        }
    }
    // What AWS does not answer is nobody's garbage.
    let unanswered = errors.iter().position(|(_, error)| matches!(error, FindError::Cloud { .. }));
    if let Some(unanswered) = unanswered {
        return Err(errors.swap_remove(unanswered).1.into());
    }
    if skip_bad {
        for (_, error) in errors.drain(..) {
            say(&format!("skipped: {}", printable(&error.to_string())));
        }
    }
    match errors.len() {
        0 => {}
        1 => return Err(errors.swap_remove(0).1.into()),
        n => {
            let what =
                format!("{n} of {} names name no one instance; nothing was changed", words.len());
            let each = errors.iter().map(|(_, error)| printable(&error.to_string())).collect();
            return Err(Several { what, each }.into());
        }
    }
    if instances.is_empty() {
        let what = "none of the names names an instance; nothing was changed".to_owned();
        return Err(Several { what, each: Vec::new() }.into());
    }
    Ok(instances)
}

/// One instance. Throttling and lost answers are no reason not to contain it.
pub(super) async fn look(session: &Session, word: &str) -> Result<Instance, FindError> {
    let transient = |error: &FindError| match error {
        FindError::Cloud { source, .. } => source.is_transient(),
        _ => false,
    };
    persist(|| find::instance(&session.cloud, &session.caller, word), transient).await
}
