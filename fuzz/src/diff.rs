//! Diffs, as `klp-build --diff` applies them to sources: what fits changes the files that it is said
//! to change, what is refused changes none, and none outside of the folder is touched.

use klp_build::{DiffError, apply};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The sources that the diffs to begin with were made of.
const SOURCES: [(&str, &str); 2] = [
    ("price.c", include_str!("../seeds/diffs/price.c")),
    ("lib/count.c", include_str!("../seeds/diffs/count.c")),
];

type Files = BTreeMap<PathBuf, Option<Vec<u8>>>;

/// Checks one input: how many folders names have in front, and a diff.
pub fn check(input: &[u8]) {
    let Some((strip, diff)) = input.split_first() else {
        return;
    };
    let place = std::env::temp_dir().join(format!("klp-fuzz-diff-{}", std::process::id()));
    let folder = place.join("sources");
    for (name, text) in SOURCES {
        let file = folder.join(name);
        fs::create_dir_all(file.parent().expect("it has a folder")).expect("there is room");
        fs::write(file, text).expect("there is room");
    }
    let before = files(&place);
    let changed = apply(diff, usize::from(strip % 4), &folder);
    let after = files(&place);
    let is_kept = |name: &PathBuf| before.get(name) == after.get(name);
    match changed {
        Ok(changed) => {
            assert!(!changed.is_empty());
            let names: Vec<_> = changed.iter().map(|name| folder.join(name)).collect();
            let parents = |file: &PathBuf| names.iter().any(|name| name.starts_with(file));
            let mut all = before.keys().chain(after.keys());
            assert!(all.all(|file| is_kept(file) || parents(file)));
        }
        // Some files may have been written.
        Err(DiffError::Io { .. }) => {
            let mut all = before.keys().chain(after.keys());
            assert!(all.all(|file| is_kept(file) || file.starts_with(&folder)));
        }
        Err(_) => assert_eq!(before, after),
    }
    fs::remove_dir_all(place).expect("it was made above");
}

/// What is in `folder`: the contents of files; folders have none.
fn files(folder: &Path) -> Files {
    let mut found = Files::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("it is there") {
            let path = entry.expect("it is there").path();
            if path.is_dir() {
                folders.push(path.clone());
                found.insert(path, None);
            } else {
                let contents = fs::read(&path).expect("it is there");
                found.insert(path, Some(contents));
            }
        }
    }
    found
}
