//! Builds patch objects, right or wrong, one piece at a time.

use crate::host::{ABS64, MACHINE};
use klp_core::elf::{SHF_RELA_LIVEPATCH, SHN_LIVEPATCH};
use object::build::elf::{Builder, Relocation, SectionData, SectionId, SymbolId};
use object::elf;
use object::endian::Endianness;

/// Flags of sections.
pub(crate) const ALLOC: elf::SectionFlags = elf::SHF_ALLOC;
pub(crate) const TEXT: elf::SectionFlags =
    elf::SectionFlags(elf::SHF_ALLOC.0 | elf::SHF_EXECINSTR.0);
pub(crate) const DATA: elf::SectionFlags = elf::SectionFlags(elf::SHF_ALLOC.0 | elf::SHF_WRITE.0);

/// A patch object under construction.
pub(crate) struct File {
    pub(crate) elf: Builder<'static>,
    symtab: SectionId,
    strings: SectionId,
    objects: SectionId,
    funcs: SectionId,
    /// `.modinfo`, entries separated by NULs.
    pub(crate) modinfo: Vec<u8>,
    relas: Vec<(String, SectionId, Vec<Relocation>)>,
}

impl File {
    pub(crate) fn new() -> Self {
        let mut elf = Builder::new(Endianness::Little, true);
        elf.header.e_type = elf::ET_REL;
        elf.header.e_machine = elf::Machine(MACHINE);
        let mut meta = |name: &'static str, kind, data: SectionData<'static>| {
            let section = elf.sections.add();
            section.name = name.into();
            section.sh_type = kind;
            section.sh_addralign = 8;
            section.data = data;
            section.id()
        };
        meta(".shstrtab", elf::SHT_STRTAB, SectionData::SectionString);
        let strtab = meta(".strtab", elf::SHT_STRTAB, SectionData::String);
        let symtab = meta(".symtab", elf::SHT_SYMTAB, SectionData::Symbol);
        elf.sections.get_mut(symtab).sh_link_section = Some(strtab);
        let mut file = Self {
            elf,
            symtab,
            strings: symtab,
            objects: symtab,
            funcs: symtab,
            modinfo: b"name=fix\0livepatch=Y\0".to_vec(),
            relas: Vec::new(),
        };
        file.strings = file.section(".rodata.klp", ALLOC, 1, b"");
        file.objects = file.section(".init.klp_objects", DATA, 8, b"");
        file.funcs = file.section(".init.klp_funcs", DATA, 8, b"");
        file
    }

    /// A file that replaces `victim` in `vmlinux` by sixteen bytes at the start of `.text.fixed`,
    /// symbol `fixed`. Returns the section too.
    pub(crate) fn replacing_victim() -> (Self, SectionId) {
        let mut file = Self::new();
        let text = file.section(".text.fixed", TEXT, 16, &[0; 16]);
        let fixed = file.function("fixed", text, 0, 16);
        file.replace(None, &[("victim", fixed, 0)]);
        (file, text)
    }

    pub(crate) fn section(
        &mut self,
        name: &'static str,
        flags: elf::SectionFlags,
        align: u64,
        bytes: &[u8],
    ) -> SectionId {
        let section = self.elf.sections.add();
        section.name = name.into();
        section.sh_type = elf::SHT_PROGBITS;
        section.sh_flags = flags;
        section.sh_addralign = align;
        section.data = SectionData::Data(bytes.to_vec().into());
        section.id()
    }

    pub(crate) fn zeros(
        &mut self,
        name: &'static str,
        flags: elf::SectionFlags,
        len: u64,
    ) -> SectionId {
        let id = self.section(name, flags, 8, b"");
        let section = self.elf.sections.get_mut(id);
        section.sh_type = elf::SHT_NOBITS;
        section.data = SectionData::UninitializedData(len);
        id
    }

    pub(crate) fn symbol(
        &mut self,
        name: &str,
        kind: elf::SymbolType,
        section: Option<SectionId>,
        value: u64,
        len: u64,
    ) -> SymbolId {
        let symbol = self.elf.symbols.add();
        symbol.name = name.as_bytes().to_vec().into();
        symbol.set_st_info(elf::STB_GLOBAL, kind);
        symbol.section = section;
        symbol.st_value = value;
        symbol.st_size = len;
        symbol.id()
    }

    pub(crate) fn function(
        &mut self,
        name: &str,
        section: SectionId,
        value: u64,
        len: u64,
    ) -> SymbolId {
        self.symbol(name, elf::STT_FUNC, Some(section), value, len)
    }

    pub(crate) fn undefined(&mut self, name: &str) -> SymbolId {
        self.symbol(name, elf::STT_NOTYPE, None, 0, 0)
    }

    pub(crate) fn livepatch(&mut self, name: &str) -> SymbolId {
        let id = self.undefined(name);
        self.elf.symbols.get_mut(id).st_shndx = elf::SymbolSection(SHN_LIVEPATCH);
        id
    }

    pub(crate) fn thread_local(&mut self, name: &str) -> SymbolId {
        let id = self.symbol(name, elf::STT_TLS, None, 0, 0);
        self.elf.symbols.get_mut(id).st_shndx = elf::SymbolSection(SHN_LIVEPATCH);
        id
    }

    /// An ordinary relocation.
    pub(crate) fn rela(
        &mut self,
        target: SectionId,
        offset: u64,
        symbol: SymbolId,
        kind: u32,
        addend: i64,
    ) {
        let name = format!(".rela{}", self.elf.sections.get(target).name);
        self.rela_in(&name, target, offset, symbol, kind, addend);
    }

    /// A relocation in the section called `name`; a livepatch one if it is called so.
    pub(crate) fn rela_in(
        &mut self,
        name: &str,
        target: SectionId,
        offset: u64,
        symbol: SymbolId,
        kind: u32,
        addend: i64,
    ) {
        let rela = Relocation {
            r_offset: offset,
            symbol: Some(symbol),
            r_type: elf::RelocationType(kind),
            r_addend: addend,
        };
        match self
            .relas
            .iter_mut()
            .find(|(known, section, _)| known == name && *section == target)
        {
            Some((_, _, list)) => list.push(rela),
            None => self.relas.push((name.into(), target, vec![rela])),
        }
    }

    /// Notes in the file that functions of `object` are replaced.
    pub(crate) fn replace(&mut self, object: Option<&str>, list: &[(&str, SymbolId, u64)]) {
        let start = self.len(self.funcs);
        for (old_name, new, sympos) in list {
            let at = self.len(self.funcs);
            self.append(self.funcs, &[[0; 8], [0; 8], sympos.to_le_bytes()].concat());
            self.point_to_text(self.funcs, at, old_name);
            self.rela(self.funcs, at + 8, *new, ABS64, 0);
        }
        let at = self.len(self.objects);
        let mut entry = [0; 64];
        entry[56..60].copy_from_slice(&u32::try_from(list.len()).expect("few").to_le_bytes());
        self.append(self.objects, &entry);
        if let Some(object) = object {
            self.point_to_text(self.objects, at, object);
        }
        let funcs = self.symbol("", elf::STT_SECTION, Some(self.funcs), 0, 0);
        self.rela(self.objects, at + 8, funcs, ABS64, start as i64);
    }

    /// Gives the object listed last a callback.
    pub(crate) fn add_callback(&mut self, which: u64, function: SymbolId) {
        self.add_callback_at(which, function, 0);
    }

    /// Gives the object listed last a callback that begins `addend` bytes behind a symbol.
    pub(crate) fn add_callback_at(&mut self, which: u64, symbol: SymbolId, addend: i64) {
        let last = self.len(self.objects) - 64;
        self.rela(self.objects, last + 16 + 8 * which, symbol, ABS64, addend);
    }

    pub(crate) fn objects_section(&self) -> SectionId {
        self.objects
    }

    fn point_to_text(&mut self, section: SectionId, at: u64, text: &str) {
        let offset = self.len(self.strings);
        self.append(self.strings, &[text.as_bytes(), b"\0"].concat());
        let symbol = self.symbol("", elf::STT_SECTION, Some(self.strings), 0, 0);
        self.rela(section, at, symbol, ABS64, offset as i64);
    }

    fn append(&mut self, section: SectionId, bytes: &[u8]) {
        let SectionData::Data(data) = &mut self.elf.sections.get_mut(section).data else {
            panic!("not data")
        };
        data.to_mut().extend_from_slice(bytes);
    }

    fn len(&self, section: SectionId) -> u64 {
        let SectionData::Data(data) = &self.elf.sections.get(section).data else {
            panic!("not data")
        };
        data.len() as u64
    }

    /// The file's bytes.
    pub(crate) fn bytes(mut self) -> Vec<u8> {
        let modinfo = self.modinfo.clone();
        self.section(".modinfo", ALLOC, 1, &modinfo);
        for (name, target, list) in core::mem::take(&mut self.relas) {
            let klp = name.starts_with(".klp.rela.");
            let section = self.elf.sections.add();
            section.sh_flags = elf::SHF_INFO_LINK;
            if klp {
                section.sh_flags |= elf::SectionFlags(SHF_RELA_LIVEPATCH) | elf::SHF_ALLOC;
            }
            section.name = name.into_bytes().into();
            section.sh_type = elf::SHT_RELA;
            section.sh_entsize = 24;
            section.sh_addralign = 8;
            section.sh_link_section = Some(self.symtab);
            section.sh_info_section = Some(target);
            section.data = SectionData::Relocation(list);
        }
        let mut bytes = Vec::new();
        self.elf.write(&mut bytes).expect("a writable file");
        bytes
    }
}
