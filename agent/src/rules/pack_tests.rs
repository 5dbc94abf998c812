use proptest::prelude::*;

use super::*;
use crate::rules::{
    compile,
    source::{Source, SourceSet, Text, digest},
};

/// A pack with all three sets.
fn pack() -> Vec<u8> {
    let strings: String = (0..20).map(|n| format!("$s{n} = \"ballast {n}\" ")).collect();
    let bytes = format!(
        "rule plain {{ condition: filesize < 4 }} \
         rule mz {{ strings: {strings} condition: uint16(0) == 0x5A4D and any of them }} \
         rule elf {{ strings: {strings} condition: uint32(0) == 0x464c457f and any of them }}"
    )
    .into_bytes();
    let text = Text { path: "t".to_owned(), sha256: digest(&bytes), bytes, includes: Vec::new() };
    let source = Source { namespace: "t".to_owned(), text };
    let set = SourceSet { sources: vec![source], diagnostics: Vec::new() };
    let mut out = Vec::new();
    compile(&set).unwrap().write_to(&mut out).unwrap();
    out
}

/// The pack with another header.
fn with_header(pack: &[u8], change: impl FnOnce(&mut PackHeader)) -> Vec<u8> {
    let (mut header, blobs) = split(pack).unwrap();
    change(&mut header);
    let mut out = Vec::new();
    Pack { header, blobs: blobs.into_iter().map(<[u8]>::to_vec).collect() }
        .write_to(&mut out)
        .unwrap();
    out
}

#[test]
fn a_pack_comes_back_with_its_sets() {
    let bytes = pack();
    let loaded = LoadedPack::load(&bytes).unwrap();
    assert_eq!(loaded.header, PackHeader::parse(&bytes).unwrap());
    for (head, index, rules, unjudged) in [
        (&b"text"[..], RouteIndex::Other, 1, 1),
        (b"\x7fELF", RouteIndex::Elf, 2, 2),
        (b"MZ", RouteIndex::Full, 3, 3),
    ] {
        assert_eq!(loaded.set_for(head), index);
        assert_eq!(loaded.rules(index).iter().len(), rules);
        assert_eq!(loaded.unjudged_in_blocks(index), unjudged);
    }
    assert_eq!(loaded.header.headers, ["4d5a", "7f454c46"]);
    assert_eq!(loaded.header.rules(), 3);
}

#[test]
fn a_pack_is_read_from_a_shared_file_at_any_position() {
    use std::io::Seek as _;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&pack()).unwrap();
    let end = file.stream_position().unwrap();
    assert_eq!(LoadedPack::load_file(&file).unwrap().header.rules(), 3);
    assert_eq!(file.stream_position().unwrap(), end);
}

#[test]
fn damaged_packs_are_refused() {
    let good = pack();
    let mut magic = good.clone();
    magic[0] ^= 1;
    let mut version = good.clone();
    version[8] ^= 1;
    let mut long_header = good.clone();
    long_header[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let cut = good[..good.len() - 1].to_vec();
    let longer = [good.as_slice(), b"x"].concat();
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("magic", magic),
        ("version", version),
        ("long header", long_header),
        ("cut", cut),
        ("longer", longer),
        ("prefix only", good[..16].to_vec()),
    ] {
        assert!(LoadedPack::load(&bytes).is_err(), "{name}");
        assert!(PackHeader::parse(&bytes).is_err(), "{name}");
    }
}

#[test]
fn headers_that_do_not_fit_their_sets_are_refused() {
    let good = pack();
    let changes: [fn(&mut PackHeader); 7] = [
        |h| h.yara_x = "0.0.0".to_owned(),
        |h| h.sets[0].length += 1,
        |h| h.sets[1].length = u64::MAX,
        |h| h.headers[0] = "4d5".to_owned(),
        |h| h.headers[0] = String::new(),
        |h| h.headers[0] = "00".repeat(HEAD_BYTES + 1),
        |h| h.sets.iter_mut().for_each(|set| set.index = RouteIndex::Full),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(LoadedPack::load(&with_header(&good, change)).is_err(), "change {index}");
    }
    // The routes name a set that the pack lacks.
    let lacking =
        with_header(&good, |h| h.sets.iter_mut().for_each(|set| set.index = RouteIndex::Other));
    assert!(matches!(LoadedPack::load(&lacking), Err(PackError::Malformed(_))));
}

#[test]
fn hexadecimal_text_round_trips() {
    assert_eq!(unhex(&hex(b"\x00\x7fELF\xff")).unwrap(), b"\x00\x7fELF\xff");
    for bad in ["0", "0g", "+f", "\u{e9}"] {
        assert_eq!(unhex(bad), None, "{bad}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_header_reader_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100), json in "[{}\\[\\]\":,a-z0-9]{0,60}") {
        let _ = PackHeader::parse(&bytes);
        let mut pack = MAGIC.to_vec();
        pack.extend(FORMAT.to_le_bytes());
        pack.extend(u32::try_from(json.len()).unwrap().to_le_bytes());
        pack.extend(json.as_bytes());
        pack.append(&mut bytes);
        prop_assert!(PackHeader::parse(&pack).is_err());
    }
}
