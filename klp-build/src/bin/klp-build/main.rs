//! `klp-build ORIGINAL PATCHED -o PATCH`: a patch object out of two builds, or, with `--diff`, out
//! of a source diff. `klp-build keygen`, `sign`, `verify`: who vouches for it.

mod rebuild;
mod sign;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use klp_build::{PatchBuilder, Target};
use rebuild::Project;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Makes a patch object out of two builds of a program, a library, or a kernel module.
///
/// Either of object files, which must be made by the same compiler with the same flags, with
/// -ffunction-sections -fdata-sections among them; or of a source diff: then the project is built
/// twice, in a copy of its sources, by the command behind --, and the flags are added.
///
/// What cannot be patched is refused, with the names of all that is at fault.
#[derive(Parser)]
#[command(version)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(subcommand_value_name = "VERB", subcommand_help_heading = "Verbs")]
#[command(override_usage = "klp-build [OPTIONS] -o OUTPUT ORIGINAL PATCHED
       klp-build [OPTIONS] -o OUTPUT --diff DIFF -- COMMAND...
       klp-build VERB ...")]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    make: Option<Args>,
}

#[derive(Subcommand)]
enum Verb {
    Keygen(sign::Keygen),
    Sign(sign::Sign),
    Verify(sign::Verify),
}

#[derive(clap::Args)]
struct Args {
    /// The original's object file, or a folder with object files, which is searched
    #[arg(required_unless_present = "diff", conflicts_with = "diff")]
    original: Option<PathBuf>,
    /// The patched one's; a file is compared with the one that has the same place in the other
    /// folder
    #[arg(required_unless_present = "diff")]
    patched: Option<PathBuf>,
    /// A diff of the project's sources
    #[arg(long, requires = "command")]
    diff: Option<PathBuf>,
    /// The project's sources, where the command is run
    #[arg(long, default_value = ".", requires = "diff")]
    source: PathBuf,
    /// How many folders the names in the diff have in front, as for patch(1)
    #[arg(long, short = 'p', default_value_t = 1, requires = "diff")]
    strip: usize,
    /// What builds the project
    #[arg(last = true, requires = "diff")]
    command: Vec<OsString>,
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
    /// The program or library that the original was linked into: tells apart what has the same
    /// name, and no other build of it can be patched by mistake
    #[arg(long)]
    target: Option<PathBuf>,
}

fn main() -> Result<()> {
    print!("{}", run(&Cli::parse())?);
    Ok(())
}

/// Does what `cli` says, and says what it did.
fn run(cli: &Cli) -> Result<String> {
    match (&cli.verb, &cli.make) {
        (Some(Verb::Keygen(keygen)), _) => keygen.run(),
        (Some(Verb::Sign(sign)), _) => sign.run(),
        (Some(Verb::Verify(verify)), _) => verify.run(),
        (None, Some(args)) => make(args),
        (None, None) => bail!("there must be two builds, or a diff: see --help"),
    }
}

/// Makes a patch object.
fn make(args: &Args) -> Result<String> {
    let name = args.name.clone().or_else(|| {
        let stem = args.output.file_stem()?.to_str()?;
        Some(stem.to_owned())
    });
    let name = name.context("the output file has no name that a patch could have: use --name")?;
    let mut patch = PatchBuilder::new(&name);
    patch.object(&args.object)?;
    if let Some(path) = &args.target {
        let target = Target::read(&read(path)?);
        let target = target.with_context(|| format!("cannot read {}", path.display()))?;
        if target.build_id().is_none() {
            let path = path.display();
            eprintln!("{path} has no build-id: the patch does not tell other builds from it");
        }
        patch.target(target);
    }
    let builds = args.diff.as_deref().map(|diff| {
        let project = Project {
            source: &args.source,
            diff,
            strip: args.strip,
            command: &args.command,
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
    let built = patch.build()?;
    std::fs::write(&args.output, &built.bytes)
        .with_context(|| format!("cannot write {}", args.output.display()))?;
    let mut said = format!("{}: the patch {name} replaces\n", args.output.display());
    for function in &built.functions {
        said += &format!("  {function}\n");
    }
    Ok(said)
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
mod tests {
    use super::*;
    use klp_core::elf::view::View;
    use std::process::Command;

    /// Compiles a function that returns `number` to `object`.
    fn compile(object: &Path, number: u32) {
        let c = object.with_extension("c");
        std::fs::create_dir_all(c.parent().expect("it has a folder")).expect("there is room");
        let source = format!("int answer(int n) {{ return n + {number}; }}");
        std::fs::write(&c, source).expect("there is room");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let status = Command::new(compiler)
            .args(["-O2", "-ffunction-sections", "-c", "-o"])
            .args([object, &c])
            .status();
        assert!(status.expect("a C compiler").success());
    }

    #[test]
    fn folders_and_files_are_compared() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        compile(&path("before/src/answer.o"), 41);
        compile(&path("after/src/answer.o"), 42);
        let run = |original: &str, patched: &str, output: &str| {
            let output = path(output);
            let args = [path(original), path(patched), "-o".into(), output.clone()];
            let cli = Cli::try_parse_from([PathBuf::from("klp-build")].iter().chain(&args));
            let said = super::run(&cli.expect("complete")).map_err(|error| format!("{error:#}"));
            (said, output)
        };
        for (original, patched, output) in [
            ("before", "after", "answer_fix.ko"),
            ("before/src/answer.o", "after/src/answer.o", "again.ko"),
        ] {
            let (said, output) = run(original, patched, output);
            let name = output.file_stem().and_then(|name| name.to_str());
            let name = name.expect("it has one");
            let path = output.display();
            assert_eq!(
                said,
                Ok(format!("{path}: the patch {name} replaces\n  answer\n"))
            );
            let bytes = std::fs::read(&output).expect("written");
            let machine = u16::from_le_bytes([bytes[18], bytes[19]]);
            let view = View::parse(&bytes, machine, false).expect("a patch object");
            assert_eq!(view.modinfo("name"), Some(name));
        }
        for (original, patched, why) in [
            ("before", "before", "nothing to patch"),
            ("before", "after/src/answer.o", "both be folders"),
            ("nowhere.o", "after/src/answer.o", "nowhere.o: No such file"),
        ] {
            let (said, output) = run(original, patched, "none.ko");
            let said = said.expect_err("refused");
            assert!(said.contains(why) && !output.exists(), "{said}");
        }
    }

    /// What `klp-build` says to `arguments`, as a person sees it.
    fn run(arguments: &[&str]) -> Result<String, String> {
        let cli = Cli::try_parse_from([&["klp-build"], arguments].concat());
        super::run(&cli.map_err(|error| error.to_string())?).map_err(|error| format!("{error:#}"))
    }

    const DIFF: &str = "\
--- a/src/price.c
+++ b/src/price.c
@@ -1,4 +1,4 @@
 #include \"shop.h\"
 int price(int n) {
-\treturn n * RATE;
+\treturn n * RATE + tax(n);
 }
--- a/shop.h
+++ b/shop.h
@@ -1,2 +1,3 @@
 #define RATE 3
 int price(int);
+int tax(int);
--- /dev/null
+++ b/src/tax.c
@@ -0,0 +1,2 @@
+#include \"../shop.h\"
+int tax(int n) { return n / 5; }
";

    #[test]
    fn a_project_is_built_twice() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_str().expect("plain").to_owned();
        std::fs::create_dir_all(path("shop/src")).expect("there is room");
        let write =
            |name: &str, text: &str| std::fs::write(path(name), text).expect("there is room");
        write("shop/shop.h", "#define RATE 3\nint price(int);\n");
        let price = "#include \"shop.h\"\nint price(int n) {\n\treturn n * RATE;\n}\n";
        write("shop/src/price.c", price);
        write("shop/src/other.c", "int other(int n) { return n; }\n");
        write("shop/stale.o", "made by hand");
        write("fix.diff", DIFF);
        let build = "for file in src/*.c; do cc -O2 -I. -c $file -o ${file%.c}.o || exit; done";
        let (shop, diff, output) = (path("shop"), path("fix.diff"), path("price_fix.ko"));
        let all = |diff: &str, build: &str| {
            let options = ["--source", &shop, "--diff", diff, "-o", &output];
            run(&[&options[..], &["--", "sh", "-c", build]].concat())
        };
        let said = all(&diff, build);
        assert_eq!(
            said,
            Ok(format!("{output}: the patch price_fix replaces\n  price\n"))
        );
        // Nothing of the project's was touched.
        assert_eq!(
            std::fs::read_to_string(path("shop/src/price.c")).ok(),
            Some(price.into())
        );
        assert!(!folder.path().join("shop/src/price.o").exists());

        let refused = |diff: &str, build: &str, why: &str| {
            let _ = std::fs::remove_file(&output);
            let said = all(diff, build).expect_err("refused");
            assert!(said.contains(why), "{said}");
            assert!(!Path::new(&output).exists());
        };
        refused(
            &diff,
            "echo the compiler is ill; exit 3",
            "the compiler is ill",
        );
        refused(&diff, "true", "made no object files");
        refused(&path("nowhere.diff"), build, "nowhere.diff");
        write(
            "misfit.diff",
            &DIFF.replace("return n * RATE;", "return n * RATIO;"),
        );
        refused(&path("misfit.diff"), build, "does not fit src/price.c");
        write(
            "elsewhere.diff",
            &DIFF.replace("b/src/price.c", "b/../price.c"),
        );
        refused(&path("elsewhere.diff"), build, "outside of the sources");
        write("empty.diff", "");
        refused(&path("empty.diff"), build, "empty.diff is no diff");
        for bad in [
            &["before"][..],
            &["before", "after", "--diff", "x"],
            &["--diff", "x"],
        ] {
            let error = run(&[bad, &["-o", "none.ko"]].concat()).expect_err("incomplete");
            assert!(error.contains("klp-build"), "{error}");
        }
    }
}
