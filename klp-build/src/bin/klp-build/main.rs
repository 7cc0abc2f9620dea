//! `klp-build ORIGINAL PATCHED -o PATCH`: a patch object out of two builds, or, with `--diff`, out
//! of a source diff. `klp-build inspect` shows what one contains; `keygen`, `sign` and `verify` are
//! about who vouches for it. `args.rs` is the command line.

mod args;
mod inspect;
mod kernel;
mod rebuild;
mod sign;
mod step;
mod units;

use anyhow::{Context, Result, bail, ensure};
use args::{Args, Verb};
use clap::{CommandFactory, Parser};
use klp_build::{PatchBuilder, Target};
use klp_core::model::VMLINUX;
use rebuild::Project;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    print!("{}", run(&Args::parse())?);
    Ok(())
}

/// Does what `args` say, and says what it did.
fn run(args: &Args) -> Result<String> {
    match (&args.command, &args.output) {
        (Some(Verb::Inspect(inspect)), _) => inspect.run(),
        (Some(Verb::Keygen(keygen)), _) => keygen.run(),
        (Some(Verb::Sign(sign)), _) => sign.run(),
        (Some(Verb::Verify(verify)), _) => verify.run(),
        (Some(Verb::Completions { shell }), _) => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "klp-build", &mut text);
            Ok(String::from_utf8(text)?)
        }
        (Some(Verb::Man { folder }), _) => manual(folder.as_deref()),
        (None, Some(output)) => make(args, output),
        (None, None) => bail!("nothing says where to write the patch object: see --help"),
    }
}

/// Prints the manual page, or writes all of them.
fn manual(folder: Option<&Path>) -> Result<String> {
    let mut page = Vec::new();
    match folder {
        Some(folder) => clap_mangen::generate_to(Args::command(), folder)
            .with_context(|| folder.display().to_string())?,
        None => clap_mangen::Man::new(Args::command()).render(&mut page)?,
    }
    Ok(String::from_utf8(page)?)
}

/// Makes a patch object.
fn make(args: &Args, output: &Path) -> Result<String> {
    let name = args.name.clone().or_else(|| {
        let stem = output.file_stem()?.to_str()?;
        Some(stem.to_owned())
    });
    let name = name.context("the output file has no name that a patch could have: use --name")?;
    let mut patch = PatchBuilder::new(&name);
    patch.object(&args.object)?;
    for name in &args.depends {
        patch.depends_on(name)?;
    }
    for label in &args.label {
        patch.label(label)?;
    }
    if let Some(description) = &args.description {
        patch.description(description)?;
    }
    for author in &args.author {
        patch.author(author)?;
    }
    if let Some(target) = target(args)? {
        patch.target(target);
    }
    let builds = args.diff.as_deref().map(|diff| {
        let project = Project {
            source: &args.source,
            diff,
            strip: args.strip,
            command: &args.build,
        };
        project.build()
    });
    let builds = builds.transpose()?;
    let (original, patched) = match (&builds, &args.original, &args.patched) {
        (Some(builds), ..) => (builds.original(), builds.patched()),
        (None, Some(original), Some(patched)) => (original.clone(), patched.clone()),
        _ => bail!("there must be two builds, or a diff: see --help"),
    };
    for (file, original, patched) in pairs(&original, &patched)? {
        let original = original.as_deref().map(read).transpose()?;
        patch.pair(&file, original.as_deref(), &read(&patched)?)?;
    }
    for name in &args.vouch_layout {
        patch.vouch_layout(name);
    }
    let built = match args.linux {
        None => patch.build()?,
        Some(_) => patch.build_for_module()?,
    };
    for warning in &built.warnings {
        eprintln!("warning: {warning}");
    }
    let bytes = match &args.linux {
        None => built.bytes,
        Some(build) => kernel::module(&built.bytes, &name, build)?,
    };
    std::fs::write(output, &bytes).with_context(|| format!("cannot write {}", output.display()))?;
    let mut said = format!("{}: the patch {name} replaces\n", output.display());
    for function in &built.functions {
        said += &format!("  {function}\n");
    }
    Ok(said)
}

/// What the original was linked into.
fn target(args: &Args) -> Result<Option<Target>> {
    let is_kernel = args.linux.is_some() && args.object == VMLINUX;
    let path = match (&args.target, &args.linux) {
        (Some(path), _) => path.clone(),
        (None, Some(build)) if is_kernel => {
            let path = build.join("vmlinux");
            ensure!(
                path.exists(),
                "there is no {}: name the kernel with its symbols by --target",
                path.display()
            );
            path
        }
        _ => return Ok(None),
    };
    let file = read(&path)?;
    let target = if is_kernel {
        Target::read_vmlinux(&file)
    } else {
        Target::read(&file)
    };
    let target = target.with_context(|| format!("cannot read {}", path.display()))?;
    if !target.is_told() {
        eprintln!(
            "warning: {} has no build-id, and has yet to be linked: the patch does not tell other \
             builds from it",
            path.display()
        );
    }
    Ok(Some(target))
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

#[cfg(test)]
mod tests;
