//! A host whose memory is a list of bytes, and whose symbols are those of a program in a file.

use super::program::{BUILD_ID, Program};
use core::fmt;
use core::marker::PhantomData;
use klp_core::addr::{CodeAddr, TextRange};
use klp_core::model::VMLINUX;
use klp_core::port::{
    Arch, Code, Fill, Image, ImageLayout, Platform, Poke, PortError, PortErrorKind, Relocator,
    Symbol, SymbolResolver, Text,
};
use klp_core::sim::SimOs;
use std::sync::Mutex;

/// Memory for one image, which lies behind the program.
pub(super) struct Host<A> {
    /// For the ports that nobody uses here.
    os: SimOs,
    program: Program,
    image: Mutex<Option<(Image, Vec<u8>)>>,
    arch: PhantomData<fn() -> A>,
}

/// Parts of an image are that far apart at least.
const PAGE: u64 = 0x1000;

impl<A: Arch + Relocator> Host<A> {
    pub(super) fn new(program: &Program) -> Self {
        Self {
            os: SimOs::new(),
            program: program.clone(),
            image: Mutex::default(),
            arch: PhantomData,
        }
    }

    pub(super) fn image(&self) -> Image {
        self.with(|image, _| *image)
    }

    pub(super) fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(CodeAddr::new(at), &mut bytes)
            .expect("in the image");
        bytes
    }

    /// The address of the symbol at position `pos` of its name.
    pub(super) fn symbol(&self, name: &str, pos: u32) -> u64 {
        let mut named = self.program.symbols.iter().filter(|each| each.name == name);
        let found = named.nth(pos.saturating_sub(1) as usize);
        found
            .unwrap_or_else(|| panic!("{name} is not in the program"))
            .addr
    }

    pub(super) fn exported_at(&self, name: &str) -> Option<u64> {
        let mut named = self.program.symbols.iter().filter(|each| each.name == name);
        named.find(|each| !each.local).map(|each| each.addr)
    }

    /// Where in the image eight bytes hold `value`.
    pub(super) fn slots(&self, value: u64) -> Vec<u64> {
        self.with(|image, bytes| super::program::slots_in(bytes, image.text.start().get(), value))
    }

    /// Where in the text, at multiples of `step`, stands what `code` makes for that place.
    pub(super) fn veneers(&self, step: u64, code: &dyn Fn(CodeAddr) -> Code) -> Vec<u64> {
        let text = self.image().text;
        let places = (text.start().get()..text.end().get()).step_by(step as usize);
        let stands = |&at: &u64| {
            let code = code(CodeAddr::new(at));
            at + code.len() as u64 <= text.end().get() && self.bytes(at, code.len()) == *code
        };
        places.filter(stands).collect()
    }

    fn with<R>(&self, look: impl FnOnce(&Image, &mut [u8]) -> R) -> R {
        let mut image = self.image.lock().expect("no panics");
        let (image, bytes) = image.as_mut().expect("an image");
        look(image, bytes)
    }
}

/// The only error.
#[derive(Debug)]
pub(super) struct OutOfMemory;

impl fmt::Display for OutOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("outside of the memory")
    }
}

impl PortError for OutOfMemory {
    fn kind(&self) -> PortErrorKind {
        PortErrorKind::Failed
    }
}

// SAFETY: nothing is executed.
unsafe impl<A: Arch + Relocator> Text for Host<A> {
    type Error = OutOfMemory;

    fn read(&self, at: CodeAddr, into: &mut [u8]) -> Result<(), OutOfMemory> {
        self.with(|image, bytes| {
            let from = at.get().checked_sub(image.text.start().get());
            let tail = from.and_then(|from| bytes.get(from as usize..));
            let bytes = tail.and_then(|tail| tail.get(..into.len()));
            into.copy_from_slice(bytes.ok_or(OutOfMemory)?);
            Ok(())
        })
    }

    unsafe fn poke(&self, _: &[Poke<'_>]) -> Result<(), OutOfMemory> {
        Err(OutOfMemory)
    }

    fn alloc(&self, _: TextRange, _: u64, layout: ImageLayout) -> Result<Image, OutOfMemory> {
        let mut at = self.program.end.next_multiple_of(PAGE) + PAGE;
        let start = at;
        let mut part = |len: u64| {
            let range = TextRange::new(CodeAddr::new(at), len);
            at = (at + len).next_multiple_of(PAGE);
            range.ok_or(OutOfMemory)
        };
        let image = Image {
            text: part(layout.text)?,
            rodata: part(layout.rodata)?,
            data: part(layout.data)?,
        };
        let bytes = vec![0; (at - start) as usize];
        *self.image.lock().expect("no panics") = Some((image, bytes));
        Ok(image)
    }

    unsafe fn free(&self, _: Image) {}

    unsafe fn fill(&self, batch: &[Fill<'_>]) -> Result<(), OutOfMemory> {
        self.with(|image, bytes| {
            for fill in batch {
                let from = (fill.at.get() - image.text.start().get()) as usize;
                bytes[from..from + fill.bytes.len()].copy_from_slice(fill.bytes);
            }
        });
        Ok(())
    }
}

// SAFETY: the symbol table of the program's file.
unsafe impl<A: Arch + Relocator> SymbolResolver for Host<A> {
    type Error = OutOfMemory;

    fn is_loaded(&self, object: &str) -> bool {
        object == VMLINUX
    }

    fn symbols(
        &self,
        object: &str,
        name: &str,
        found: &mut dyn FnMut(Symbol),
    ) -> Result<(), OutOfMemory> {
        let symbols = self.program.symbols.iter();
        for symbol in symbols.filter(|symbol| object == VMLINUX && symbol.name == name) {
            found(Symbol {
                addr: CodeAddr::new(symbol.addr),
                len: symbol.len,
            });
        }
        Ok(())
    }

    fn exported(&self, name: &str) -> Result<Option<CodeAddr>, OutOfMemory> {
        Ok(self.exported_at(name).map(CodeAddr::new))
    }

    fn function_at(&self, _: CodeAddr) -> Option<TextRange> {
        None
    }

    fn build_id(&self, _: &str, is: &mut dyn FnMut(&[u8])) -> Result<(), OutOfMemory> {
        is(&BUILD_ID.to_be_bytes());
        Ok(())
    }
}

// SAFETY: one host that executes nothing.
unsafe impl<A: Arch + Relocator> Platform for Host<A> {
    type Lock = <SimOs as Platform>::Lock;
    type Tracer = <SimOs as Platform>::Tracer;
    type Unwinder = <SimOs as Platform>::Unwinder;
    type Tasks = <SimOs as Platform>::Tasks;
    type Symbols = Self;
    type Text = Self;
    type Arch = A;
    type Relocator = A;

    fn tracer(&self) -> &Self::Tracer {
        self.os.tracer()
    }
    fn unwinder(&self) -> &Self::Unwinder {
        self.os.unwinder()
    }
    fn tasks(&self) -> &Self::Tasks {
        self.os.tasks()
    }
    fn symbols(&self) -> &Self {
        self
    }
    fn text(&self) -> &Self {
        self
    }
}
