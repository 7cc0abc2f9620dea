//! `cargo xtask install`: what users of the library and of the commands need, in one folder.

use crate::run::{cargo, run};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The shared library's own name.
const SONAME: &str = "libklp.so.0";

/// Builds everything and puts it below `prefix`, for programs that will find it there.
pub(crate) fn install(prefix: &Path) -> Result<()> {
    let prefix = std::path::absolute(prefix)?;
    run(cargo().args([
        "build",
        "--release",
        "-p",
        "libklp",
        "-p",
        "klp-os-linux",
        "-p",
        "klp-build",
        "--lib",
        "--bins",
    ]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
    let built = target.join("release");
    let copy = |from: &Path, to: &str| -> Result<()> {
        let to = prefix.join(to);
        std::fs::create_dir_all(to.parent().context("a file has a folder")?)?;
        // A program that runs keeps what it has.
        let _ = std::fs::remove_file(&to);
        std::fs::copy(from, &to).with_context(|| from.display().to_string())?;
        Ok(())
    };
    for name in ["klp", "klp-build", "klp-convert"] {
        copy(&built.join(name), &format!("bin/{name}"))?;
    }
    copy(&built.join("libklp.so"), &format!("lib/{SONAME}"))?;
    copy(&built.join("libklp.a"), "lib/libklp.a")?;
    let link = prefix.join("lib/libklp.so");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(SONAME, link)?;

    copy(Path::new("libklp/include/klp.h"), "include/klp.h")?;
    for folder in ["os-linux/include/klp", "klp-build/include/klp"] {
        for file in std::fs::read_dir(folder)? {
            let file = file?;
            let name = file.file_name();
            copy(
                &file.path(),
                &format!("include/klp/{}", name.to_string_lossy()),
            )?;
        }
    }
    let template = std::fs::read_to_string("libklp/klp.pc.in")?;
    let described = template
        .replace("@PREFIX@", &prefix.to_string_lossy())
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    write(&prefix.join("lib/pkgconfig/klp.pc"), described.as_bytes())?;

    let pages = prefix.join("share/man/man1");
    std::fs::create_dir_all(&pages)?;
    for name in ["klp", "klp-build"] {
        let program = prefix.join("bin").join(name);
        run(Command::new(&program).arg("man").arg(&pages))?;
        for (shell, file) in [
            ("bash", format!("share/bash-completion/completions/{name}")),
            ("zsh", format!("share/zsh/site-functions/_{name}")),
            (
                "fish",
                format!("share/fish/vendor_completions.d/{name}.fish"),
            ),
        ] {
            let output = Command::new(&program)
                .args(["completions", shell])
                .output()?;
            ensure!(output.status.success(), "{name} completions {shell} failed");
            write(&prefix.join(file), &output.stdout)?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a file has a folder")?)?;
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

/// Installs into the target folder, and uses what is there as a user would: a program is compiled
/// with what pkg-config says, patches itself, and runs.
pub(crate) fn check() -> Result<()> {
    let prefix = std::path::absolute("target/install")?;
    install(&prefix)?;
    let tool = |name: &str| prefix.join("bin").join(name);
    let work = prefix.join("work");
    std::fs::create_dir_all(&work)?;
    let flags = |what: &str| -> Result<Vec<String>> {
        let output = Command::new("pkg-config")
            .args([what, "klp"])
            .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig"))
            .output();
        let output = match output {
            Ok(output) => output,
            // What it would say.
            Err(_) => {
                let path = |name| prefix.join(name).display().to_string();
                return Ok(match what {
                    "--cflags" => vec![format!("-I{}", path("include"))],
                    _ => vec![format!("-L{}", path("lib")), "-lklp".into()],
                });
            }
        };
        ensure!(output.status.success(), "pkg-config does not know klp");
        let text = String::from_utf8(output.stdout)?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    let examples = Path::new("libklp/examples");
    let compile = |args: &[&str], from: &str, to: &str| -> Result<()> {
        let mut command = Command::new("cc");
        command.args(args).args(flags("--cflags")?);
        run(command
            .arg(examples.join(from))
            .arg("-o")
            .arg(work.join(to)))
    };
    let pads = [
        "-O2",
        "-fpatchable-function-entry=16",
        "-fno-ipa-ra",
        "-fno-function-sections",
        "-c",
    ];
    compile(&pads, "greeter.c", "greeter.o")?;
    compile(
        &["-O2", "-fPIC", "-ffunction-sections", "-c"],
        "greeter_fix.c",
        "fix.o",
    )?;
    let (object, patch) = (work.join("fix.o"), work.join("fix.ko"));
    run(Command::new(tool("klp-convert")).arg(object).arg(&patch))?;
    let program = work.join("embed");
    run(Command::new("cc")
        .args(flags("--cflags")?)
        .arg(examples.join("embed.c"))
        .arg(work.join("greeter.o"))
        .args(flags("--libs")?)
        .arg(format!("-Wl,-rpath,{}", prefix.join("lib").display()))
        .arg("-o")
        .arg(&program))?;
    let output = Command::new(&program).arg(&patch).output()?;
    ensure!(
        output.stdout == b"helo\nhello\nhelo\n",
        "the example said: {output:?}"
    );
    // The command finds the library beside itself.
    run(Command::new(tool("klp")).args(["run", "true"]))
}
