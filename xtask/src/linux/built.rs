//! Patches that klp-build makes for a kernel: one of a module of ours out of a source diff, and one
//! of the kernel itself.

use super::modules::copy;
use super::which::Kernel;
use super::work::{dir, step};
use super::{kernel, supply};
use crate::run::{cargo, quiet};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// What is patched: `fs/proc/cmdline.c` of the kernel, where this becomes that.
const CHANGE: (&str, &str) = ("'\\n'", "'!'");

/// Makes them for the kernel that was built in `build`. Files for a guest's job.
pub(super) fn patches(which: Kernel, build: &Path) -> Result<Vec<(String, PathBuf)>> {
    let headers = kernel::headers(which)?;
    let folder = dir(&format!("built{}", which.suffix()))?;
    let shop = folder.join("shop");
    copy(Path::new("os-linux/kernel/tests/shop"), &shop)?;
    std::fs::write(shop.join("Makefile"), "obj-m += klp_shop.o\n")?;
    let log = folder.with_extension("log");
    let klp_build = |name: &str| {
        let mut command = cargo();
        command.args([
            "run",
            "--quiet",
            "--package",
            "klp-build",
            "--bin",
            "klp-build",
        ]);
        command.arg("--").arg("--linux").arg(&headers.build);
        command.arg("--output").arg(folder.join(name));
        headers.variables(&mut command);
        command
    };
    step("make patches with klp-build", || {
        quiet(&mut headers.modules(&shop), &log)?;
        let mut shop_fix = klp_build("klp_shop_fix.ko");
        shop_fix.args(["--object", "klp_shop", "--target"]);
        shop_fix.arg(shop.join("klp_shop.ko"));
        shop_fix.arg("--diff").arg(shop.join("fix.diff"));
        shop_fix.arg("--source").arg(&shop);
        shop_fix.args(["--", "sh", "-c", "make -C \"$0\" M=\"$PWD\" klp_shop.o"]);
        quiet(shop_fix.arg(&headers.build), &log)?;

        for (name, change) in [("original", None), ("patched", Some(CHANGE))] {
            compile_cmdline(&headers, &folder.join(name), change, &log)?;
        }
        let mut cmdline_fix = klp_build("klp_cmdline_fix.ko");
        cmdline_fix.arg("--target").arg(build.join("vmlinux"));
        cmdline_fix.args(["original", "patched"].map(|name| folder.join(name).join("cmdline.o")));
        quiet(&mut cmdline_fix, &log)
    })?;
    let file = |path: &str| {
        let name = Path::new(path).file_name().unwrap_or_default();
        (format!("job/{}", name.display()), folder.join(path))
    };
    Ok(
        ["shop/klp_shop.ko", "klp_shop_fix.ko", "klp_cmdline_fix.ko"]
            .map(file)
            .into(),
    )
}

/// Compiles the kernel's `fs/proc/cmdline.c` in `folder`, as the kernel does, with `change`.
fn compile_cmdline(
    headers: &kernel::Make,
    folder: &Path,
    change: Option<(&str, &str)>,
    log: &Path,
) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let source = supply::source()?.join("fs/proc/cmdline.c");
    let mut text = std::fs::read_to_string(&source)
        .with_context(|| format!("cannot read {}", source.display()))?;
    if let Some((from, to)) = change {
        ensure!(text.contains(from), "{} has no {from}", source.display());
        text = text.replace(from, to);
    }
    std::fs::write(folder.join("cmdline.c"), text)?;
    let makefile = "obj-y += cmdline.o\n\
                    ccflags-y += -I$(srctree)/fs/proc -ffunction-sections -fdata-sections\n";
    std::fs::write(folder.join("Makefile"), makefile)?;
    quiet(&mut headers.objects(folder, "cmdline.o"), log)
}
