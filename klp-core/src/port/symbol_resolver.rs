//! Names to addresses.

use super::error::PortError;
use crate::addr::{CodeAddr, TextRange};
use crate::config::SYMBOL_NAME_LEN;
use core::fmt;

/// A symbol of a loaded object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Symbol {
    /// Its address in the running system.
    pub addr: CodeAddr,
    /// Its size in bytes; 0 if the table does not say.
    pub len: u64,
}

/// A thread-local variable of a loaded object ("ELF Handling For Thread-Local Storage", 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ThreadLocal {
    /// The number that the object has for `__tls_get_addr` as long as it is loaded.
    pub module: u64,
    /// How many bytes it is from the beginning of the block that each thread has for that object.
    pub offset: u64,
    /// How many bytes it is from the thread pointer, if that is the same in all threads that there
    /// are and will be while the object is loaded.
    pub from_thread_pointer: Option<i64>,
}

/// A part of an object's code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Extent {
    /// All of it: [`elf::code`](crate::elf::code) says in which order.
    Object,
    /// What is there.
    Range(TextRange),
}

/// The host's symbol tables (kernel: kallsyms).
///
/// Objects are named as patches name them: [`VMLINUX`](crate::model::VMLINUX) for the base image,
/// otherwise a module's name.
///
/// # Safety
///
/// What it says is believed, as nothing else knows. A symbol is where it says, and as long; the
/// object of that name has it, and is completely loaded. [`exported`](SymbolResolver::exported) is
/// what new code is linked with. A part that [`parts`](SymbolResolver::parts) leaves out is one in
/// which the engine does not see a task.
///
/// # For OS porters
///
/// Report what the tables hold, in their order and with local symbols: the core counts (`sympos`),
/// so no port can get that wrong. `klp_core::conformance::symbol_resolver` (feature `conformance`)
/// is the test to call.
///
/// A base image whose symbols are a table in the program:
///
/// ```
/// use klp_core::addr::{CodeAddr, TextRange};
/// use klp_core::model::VMLINUX;
/// use klp_core::port::{PortError, PortErrorKind, Symbol, SymbolResolver};
///
/// struct Table(&'static [(&'static str, u64, u64)]);
///
/// #[derive(Debug)]
/// enum Never {}
/// # impl core::fmt::Display for Never {
/// #     fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result { match *self {} }
/// # }
/// # impl PortError for Never {
/// #     fn kind(&self) -> PortErrorKind { match *self {} }
/// # }
///
/// // SAFETY: whoever writes the table promises that it is right.
/// unsafe impl SymbolResolver for Table {
///     type Error = Never;
///     fn is_loaded(&self, object: &str) -> bool {
///         object == VMLINUX
///     }
///     fn symbols(
///         &self,
///         object: &str,
///         name: &str,
///         found: &mut dyn FnMut(Symbol),
///     ) -> Result<(), Never> {
///         let called = |row: &&(&str, u64, u64)| self.is_loaded(object) && row.0 == name;
///         for (_, addr, len) in self.0.iter().filter(called) {
///             found(Symbol { addr: CodeAddr::new(*addr), len: *len });
///         }
///         Ok(())
///     }
///     fn exported(&self, name: &str) -> Result<Option<CodeAddr>, Never> {
///         Ok(self.0.iter().find(|row| row.0 == name).map(|row| CodeAddr::new(row.1)))
///     }
///     fn function_at(&self, addr: CodeAddr) -> Option<TextRange> {
///         let range = |row: &(&str, u64, u64)| TextRange::new(CodeAddr::new(row.1), row.2);
///         self.0.iter().filter_map(range).find(|range| range.contains(addr))
///     }
/// }
/// # let table = Table(&[("work", 0x1000, 0x20)]);
/// # assert!(table.function_at(CodeAddr::new(0x101f)).is_some());
/// # assert!(matches!(table.exported("other"), Ok(None)));
/// ```
pub unsafe trait SymbolResolver: Sync {
    /// What can go wrong.
    type Error: PortError;

    /// Longest name of a symbol, in bytes. The engine refuses patches of functions with longer ones
    /// (kernel: `klp_init_func`, `-EINVAL`). A host that has longer ones than Linux must provide
    /// [`parts`](SymbolResolver::parts); else it does not compile.
    const NAME_LEN: usize = SYMBOL_NAME_LEN;

    /// Whether the object is there now.
    fn is_loaded(&self, object: &str) -> bool;

    /// Reports every symbol called `name` in `object`, in symbol-table order.
    ///
    /// # Errors
    ///
    /// If the tables cannot be read; a name that is not there is no error.
    fn symbols(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), Self::Error>;

    /// The same for symbols that new code refers to. Where a name stands for more than its address
    /// (an indirect function, `STT_GNU_IFUNC`, whose code says which function is meant), the address
    /// is the one that the system itself refers to.
    ///
    /// # Errors
    ///
    /// As for [`symbols`](Self::symbols); and if that address is not known.
    fn references(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), Self::Error> {
        self.symbols(object, name, found)
    }

    /// The same for thread-local variables that new code refers to: they are no symbols of the others,
    /// and counted by themselves. As it stands here, there are none.
    ///
    /// # Errors
    ///
    /// As for [`symbols`](Self::symbols).
    fn thread_locals(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(ThreadLocal),
    ) -> Result<(), Self::Error> {
        let _ = (object, name, found);
        Ok(())
    }

    /// The address of an exported symbol, as the host's own linker would bind it for new code
    /// (kernel: `EXPORT_SYMBOL`; a process: the dynamic linker's global scope).
    ///
    /// # Errors
    ///
    /// As for [`symbols`](Self::symbols).
    fn exported(&self, name: &str) -> Result<Option<CodeAddr>, Self::Error>;

    /// The function that `addr` lies in (kernel: `kallsyms_lookup_size_offset`).
    fn function_at(&self, addr: CodeAddr) -> Option<TextRange>;

    /// Why the function `new` must not run in the place of `old`, if callers of `old` count on more
    /// than its type says: on registers that belong to an object, say (ppc64le: register 2). `other`
    /// is the `st_other` of `new`'s symbol, if it comes from a patch object. As it stands here,
    /// nothing of that kind is known.
    ///
    /// # Errors
    ///
    /// As for [`symbols`](Self::symbols).
    fn misfit(
        &self,
        old: TextRange,
        new: TextRange,
        other: Option<u8>,
    ) -> Result<Option<&'static str>, Self::Error> {
        let _ = (old, new, other);
        Ok(None)
    }

    /// Reports the parts that the compiler split off the function that occupies `func`, of the base
    /// image, a module or a patch: what its symbols called `NAME.cold` and `NAME.cold.N` cover.
    /// `known_as` are the object and the name by which it was found, if it was.
    ///
    /// Parts of another function of the same name may be among them: that holds a transition back a
    /// little longer, and is never wrong. As it stands here, it finds `NAME.cold` of functions that
    /// are known by name.
    ///
    /// # Errors
    ///
    /// As for [`symbols`](Self::symbols).
    fn parts(
        &self,
        func: TextRange,
        known_as: Option<(&str, &str)>,
        found: &mut dyn FnMut(TextRange),
    ) -> Result<(), Self::Error> {
        const { assert!(Self::NAME_LEN <= SYMBOL_NAME_LEN) };
        let _ = func;
        let Some((object, name)) = known_as else {
            return Ok(());
        };
        let mut cold = heapless::String::<{ SYMBOL_NAME_LEN + 5 }>::new();
        // A longer name has no symbol.
        if cold
            .push_str(name)
            .and_then(|()| cold.push_str(".cold"))
            .is_err()
        {
            return Ok(());
        }
        self.symbols(object, &cold, &mut |symbol| {
            if let Some(part) = TextRange::new(symbol.addr, symbol.len) {
                found(part);
            }
        })
    }

    /// Reports the names of functions that the compiler made of functions called `name` in `object`
    /// for some of their callers (`NAME.constprop.0`, `NAME.isra.0`, `NAME.part.0`): those do not
    /// call `name`, so they do not come to what replaces it. The engine only tells people.
    ///
    /// # Errors
    ///
    /// As for [`symbols`](Self::symbols).
    fn clones(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(&str),
    ) -> Result<(), Self::Error> {
        let _ = (object, name, found);
        Ok(())
    }

    /// Shows `is` what tells the build of `object` from others of it: its build-id. A patch may say
    /// for which build of an object it was made; it is refused for all others, and where this is
    /// not known, as it stands here.
    ///
    /// # Errors
    ///
    /// As for [`symbols`](Self::symbols).
    fn build_id(&self, object: &str, is: &mut dyn FnMut(&[u8])) -> Result<(), Self::Error> {
        let _ = (object, is);
        Ok(())
    }

    /// Shows `is` digests of code of `object`, of the algorithm called `algorithm` (`sha256`), with
    /// their numbers in `of`: of the code as it was built, whatever patches, tracers and the system
    /// itself have written there since. A patch may say which code it was made for; it is refused
    /// where there is other code.
    ///
    /// What is not shown is not known: an algorithm that is unknown, or code that the host cannot
    /// tell from what was made of it, as nothing is known as it stands here. Then a patch that is
    /// for certain code of the whole object is refused; one for certain functions, if it is not for
    /// a certain build of the object besides.
    ///
    /// # Errors
    ///
    /// What keeps the host from looking, if it would know otherwise.
    fn digests(
        &self,
        object: &str,
        algorithm: &str,
        of: &[Extent],
        is: &mut dyn FnMut(usize, &[u8]),
    ) -> Result<(), Self::Error> {
        let _ = (object, algorithm, of, is);
        Ok(())
    }

    /// Writes `addr` for people: `function+0x12/0x40`, or the bare address if nothing is known.
    ///
    /// # Errors
    ///
    /// Only those of `out`.
    fn describe(&self, addr: CodeAddr, out: &mut dyn fmt::Write) -> fmt::Result {
        write!(out, "{addr}")
    }
}
