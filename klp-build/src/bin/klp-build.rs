//! `klp-build ORIGINAL PATCHED -o PATCH`: a patch object out of two builds.

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use klp_build::{PatchBuilder, Target};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Makes a patch object out of two builds of a program, a library, or a kernel module.
///
/// Both builds must be made by the same compiler with the same flags, with -ffunction-sections
/// -fdata-sections among them. What cannot be patched is refused, with the names of all that is at
/// fault.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The original's object file, or a folder with object files, which is searched
    original: PathBuf,
    /// The patched one's; a file is compared with the one that has the same place in the other
    /// folder
    patched: PathBuf,
    /// Where to write the patch object
    #[arg(short, long)]
    output: PathBuf,
    /// The patch's name [default: that of the output file, without an ending]
    #[arg(long)]
    name: Option<String>,
    /// The object to be patched: the base image, or a library by its file name up to .so, with _
    /// for . and -
    #[arg(long, default_value = "vmlinux")]
    object: String,
    /// The program or library that the original was linked into: tells apart what has the same name
    #[arg(long)]
    target: Option<PathBuf>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let name = args.name.clone().or_else(|| {
        let stem = args.output.file_stem()?.to_str()?;
        Some(stem.to_owned())
    });
    let name = name.context("the output file has no name that a patch could have: use --name")?;
    let mut patch = PatchBuilder::new(&name);
    patch.object(&args.object)?;
    if let Some(path) = &args.target {
        let target = Target::read(&read(path)?);
        patch.target(target.with_context(|| format!("cannot read {}", path.display()))?);
    }
    for (file, original, patched) in pairs(&args.original, &args.patched)? {
        let original = original.as_deref().map(read).transpose()?;
        patch.pair(&file, original.as_deref(), &read(&patched)?)?;
    }
    let built = patch.build()?;
    std::fs::write(&args.output, &built.bytes)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    println!("{}: the patch {name} replaces", args.output.display());
    for function in &built.functions {
        println!("  {function}");
    }
    Ok(())
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// What to call an object file, where the original's is if there is one, and the patched one's.
type Files = (PathBuf, Option<PathBuf>, PathBuf);

fn pairs(original: &Path, patched: &Path) -> Result<Vec<Files>> {
    match (original.is_dir(), patched.is_dir()) {
        (false, false) => Ok(vec![(
            patched.to_path_buf(),
            Some(original.to_path_buf()),
            patched.to_path_buf(),
        )]),
        (true, true) => {
            let mut files = BTreeSet::new();
            collect(patched, Path::new(""), &mut files)?;
            ensure!(
                !files.is_empty(),
                "{} has no object files",
                patched.display()
            );
            let pair = |file: PathBuf| {
                let before = Some(original.join(&file)).filter(|path| path.exists());
                let after = patched.join(&file);
                (file, before, after)
            };
            Ok(files.into_iter().map(pair).collect())
        }
        _ => bail!(
            "{} and {} must both be files, or both be folders",
            original.display(),
            patched.display()
        ),
    }
}

/// Collects the object files below `folder`, by their places there.
fn collect(root: &Path, folder: &Path, files: &mut BTreeSet<PathBuf>) -> Result<()> {
    let full = root.join(folder);
    let list = || format!("cannot list {}", full.display());
    for entry in std::fs::read_dir(&full).with_context(list)? {
        let entry = entry.with_context(list)?;
        let place = folder.join(entry.file_name());
        if entry.file_type().with_context(list)?.is_dir() {
            collect(root, &place, files)?;
        } else if place.extension().is_some_and(|ending| ending == "o") {
            files.insert(place);
        }
    }
    Ok(())
}
