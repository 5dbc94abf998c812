//! What lies in a stretch of bytes, from signatures and superblocks.
//!
//! Each function of the modules below looks for one family at its fixed places and answers only where
//! the signature and the fields around it make sense together. Several may answer for one stretch:
//! old superblocks survive, and hostile ones can be planted. The first in the order below is taken,
//! the others are named in a note, so that nothing is hidden by something else.

mod dos;
mod layers;
mod linux;
mod read_only;

use cleanroom_contract::GapKind;

use super::{
    layout::{Content, ContentKind, Trouble},
    source::Region,
};

/// Content with what else is to be said about it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) content: Content,
    pub(super) notes: Vec<Trouble>,
}

impl From<Content> for Found {
    fn from(content: Content) -> Self {
        Self { content, notes: Vec::new() }
    }
}

/// Looks for one family.
type Detector = fn(&Region<'_>) -> Option<Found>;

/// Layers that hold something else come first; FAT, whose signature is the weakest, last.
const DETECTORS: [Detector; 15] = [
    layers::luks,
    dos::bitlocker,
    layers::md_at_start,
    layers::lvm,
    linux::xfs,
    dos::ntfs,
    dos::exfat,
    read_only::squashfs,
    linux::btrfs,
    linux::ext,
    linux::f2fs,
    read_only::erofs,
    read_only::optical,
    layers::swap,
    dos::vfat,
];

/// Tells what the stretch holds: `Unknown` or `Empty` where nothing is recognised.
///
/// `whole_of_its_own` says that no partition table divides the stretch: only then do signatures
/// count that lie at its end, where they could as well belong to the last partition.
pub(super) fn detect(region: &Region<'_>, whole_of_its_own: bool) -> Found {
    let mut all: Vec<Found> = DETECTORS.iter().filter_map(|look| look(region)).collect();
    if whole_of_its_own {
        match layers::md_at_end(region) {
            // A mirror's member begins with what the mirror holds, and that can be mounted alone.
            Some((found, layers::Level::Mirror)) if all.is_empty() => all.push(found),
            Some((_, layers::Level::Mirror)) | None => {}
            Some((found, layers::Level::Other)) => all.insert(0, found),
        }
    }
    if all.is_empty() {
        all.extend(layers::zfs(region));
    }
    let mut all = all.into_iter();
    let Some(mut first) = all.next() else {
        let kind = if region.is_zero() { ContentKind::Empty } else { ContentKind::Unknown };
        return Content::new(kind).into();
    };
    let others: Vec<&str> = all.map(|other| other.content.kind.as_str()).collect();
    if !others.is_empty() {
        let (kind, others) = (first.content.kind.as_str(), others.join(", "));
        first.notes.push(Trouble::new(
            GapKind::Unmounted,
            format!("it is taken for {kind} and also has the signature of {others}"),
            "the other may be the remains of an earlier file system: look at it on a copy (wipefs --no-act)",
        ));
    }
    first
}
