//! Functions that must not be redirected (kernel: `notrace`, and the list that `NOKPROBE_SYMBOL`
//! makes).

use super::arch;
use super::elf_file::ElfFile;
use super::objects::Object;
use super::sites;
use super::space::Space;
use super::symbol_table::Kind;
use alloc::sync::Arc;
use core::fmt::{self, Write};
use klp_core::addr::{CodeAddr, TextRange};

/// The engine's crates. Redirected calls and stop signals run their code: a patch
/// there would call itself.
const ENGINE: [&str; 4] = ["klp_core::", "klp_unwind::", arch::CRATE, "klp_os_linux::"];

/// Stands in the names of all of these.
const CRATES: &str = "klp_";

/// The section in which programs record the addresses of functions that must not be redirected.
const MARKED: &str = "__klp_notrace";

/// Marks functions as ones that must not be patched, by their paths; a patch for one of them is
/// refused. Stands beside functions. (For C, there is `KLP_NOTRACE` in the header `klp/notrace.h`
/// of klp-build.)
///
/// ```
/// extern "C" fn on_signal(_signal: i32) {}
///
/// # #[cfg(target_os = "linux")]
/// klp_os_linux::notrace!(on_signal);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! notrace {
    ($($function:path),+ $(,)?) => {$(
        // `R`: nothing refers to the section, but linkers that collect garbage must keep it.
        ::core::arch::global_asm!(
            ".pushsection __klp_notrace,\"awR\",@progbits",
            ".balign 8",
            ".quad {function}",
            ".popsection",
            function = sym $function,
        );
    )+};
}

/// Whether the function in `func` is marked, or the engine's own.
pub(crate) fn is_notrace(space: &Space, func: TextRange) -> bool {
    let is_notrace = |object: &Arc<Object>| {
        // Where these are not known, no entry site is known either.
        let read = |file: &ElfFile| all(object, file);
        let notrace = sites::read_once(object, &object.notrace, read)?;
        let first = notrace.partition_point(|addr| *addr < func.start());
        notrace.get(first).map(|addr| func.contains(*addr))
    };
    let object = space.objects.look_at(func.start(), is_notrace);
    object.flatten().unwrap_or(false)
}

/// Where the functions of `object`, whose file is `file`, begin that must not be redirected.
fn all(object: &Object, file: &ElfFile) -> Vec<CodeAddr> {
    let mut all = sites::words(object, file, &[MARKED]);
    let functions = file
        .symbols
        .iter()
        .filter(|symbol| symbol.kind == Kind::Function && is_engine(file.symbols.name(symbol)));
    all.extend(functions.map(|symbol| object.in_memory(symbol.addr)));
    all
}

/// Whether the symbol `name` is of a function of the engine's crates.
fn is_engine(name: &str) -> bool {
    // All of them are mangled. A program may have many others.
    if !name.starts_with('_') || !name.contains(CRATES) {
        return false;
    }
    let mut start = Start::default();
    // It fails when it has seen enough.
    let _ = write!(start, "{:#}", rustc_demangle::demangle(name));
    // Methods of a trait begin with `<Type as Trait>`; destructors are instances of one function.
    let path = start
        .0
        .trim_start_matches("core::ptr::drop_in_place<")
        .trim_start_matches('<');
    ENGINE.iter().any(|engine| path.starts_with(engine))
}

/// The first letters of what is written into it.
#[derive(Default)]
struct Start(heapless::String<64>);

impl Write for Start {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars()
            .try_for_each(|letter| self.0.push(letter).map_err(|()| fmt::Error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_known_by_the_names_of_its_functions() {
        let arch = arch::CRATE.trim_end_matches("::");
        let arch = format!("_RNvNtCsabcdefghijk_{}{arch}6unwind4walk", arch.len());
        let engine = [
            "_ZN12klp_os_linux7process4stop9on_signal17h0123456789abcdefE",
            "_ZN87_$LT$klp_os_linux..process..pads..Pads$u20$as$u20$klp_os_linux..process..stop..Look$GT$4look17h0123456789abcdefE",
            "_ZN8klp_core3ops7handler7handler28_$u7b$$u7b$closure$u7d$$u7d$17h0123456789abcdefE",
            "_ZN4core3ptr58drop_in_place$LT$klp_os_linux..process..sys..KeepErrno$GT$17h0123456789abcdefE",
            &arch,
            "_RNvNtCsabcdefghijk_10klp_unwind4walk4walk",
        ];
        let others = [
            "main",
            "klp_core",
            "_ZN21klp_os_linux_fixtures4text17h0123456789abcdefE",
            "_ZN4core3fmt5write17h0123456789abcdefE",
        ];
        for name in engine {
            assert!(is_engine(name), "{name}");
        }
        for name in others {
            assert!(!is_engine(name), "{name}");
        }
    }
}
