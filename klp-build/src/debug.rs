//! The debug information of an object file, as a tree of entries (DWARF 2 to 5).

use crate::debug_sections::DebugSections;
use gimli::constants::{self as dw, DwTag};
use gimli::{AttributeValue, EndianSlice, Reader as _, RunTimeEndian, Section as _};
use gimli::{UnitSectionOffset, UnitType};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};

type Bytes<'a> = EndianSlice<'a, RunTimeEndian>;
type Result<T, E = String> = core::result::Result<T, E>;

/// An entry.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) tag: DwTag,
    /// The entry that this one is in; a unit's own is in itself.
    pub(crate) parent: usize,
    /// Behind the last one that is in this one.
    pub(crate) end: usize,
    pub(crate) name: Option<Cow<'a, str>>,
    /// What type it has, or what its type is made of.
    pub(crate) of_type: Option<usize>,
    /// What says the rest of it: its declaration, or what it is a copy of.
    pub(crate) origin: Option<usize>,
    /// The type whose functions a table of Rust's points to.
    pub(crate) container: Option<usize>,
    /// It only says that there is one.
    pub(crate) is_declaration: bool,
    /// The compiler made it.
    pub(crate) is_artificial: bool,
    /// Other object files know it.
    pub(crate) is_external: bool,
    /// It is a variable that is not on the stack.
    pub(crate) is_static: bool,
    /// Bytes.
    pub(crate) size: Option<u64>,
    pub(crate) align: Option<u64>,
    /// Bits from the start of what it is in.
    pub(crate) at: Option<u64>,
    /// Bits, if it is a bit-field.
    pub(crate) bits: Option<u64>,
    /// Of an array, or one of its dimensions.
    pub(crate) count: Option<u64>,
    pub(crate) value: Option<i128>,
    pub(crate) encoding: Option<u64>,
    /// Its place in the table of virtual functions.
    pub(crate) slot: Option<u64>,
    /// The source file, without its folder.
    pub(crate) file: Option<Cow<'a, str>>,
    /// Of a unit: what made it.
    pub(crate) producer: Option<Cow<'a, str>>,
    pub(crate) language: Option<dw::DwLang>,
}

/// All entries, in the order of the file.
#[derive(Debug, Default)]
pub(crate) struct Entries<'a> {
    pub(crate) all: Vec<Entry<'a>>,
    /// The functions, by where their code begins.
    pub(crate) functions: BTreeMap<u64, usize>,
    /// Of a unit or more there is only a hint to another file (`-gsplit-dwarf`).
    pub(crate) is_elsewhere: bool,
}

/// What an entry refers to, before all are read.
#[derive(PartialEq, Eq, Hash)]
enum Place {
    At(UnitSectionOffset),
    /// A type with that signature.
    Signed(u64),
}

enum Link {
    Type,
    Origin,
    Container,
}

impl<'a> Entries<'a> {
    /// Reads what the sections say.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub(crate) fn read(sections: &'a DebugSections) -> Result<Self> {
        Self::read_all(sections).map_err(|error| match error {
            gimli::Error::UnexpectedEof(_) => "it ends too early".to_owned(),
            error => error.to_string(),
        })
    }

    fn read_all(sections: &'a DebugSections) -> gimli::Result<Self> {
        let dwarf = gimli::Dwarf::load(|id| gimli::Result::Ok(sections.section(id.name())))?;
        let mut reading = Reading {
            entries: Self::default(),
            places: HashMap::new(),
            links: Vec::new(),
        };
        let mut headers = dwarf.units();
        while let Some(header) = headers.next()? {
            reading.unit(&dwarf, header)?;
        }
        let mut headers = dwarf.type_units();
        while let Some(header) = headers.next()? {
            reading.unit(&dwarf, header)?;
        }
        let Reading {
            mut entries,
            places,
            links,
        } = reading;
        for (from, link, place) in links {
            let to = places.get(&place).copied();
            // Nothing may be missing, but a type that another file has.
            let to = to.ok_or(gimli::Error::MissingUnitDie)?;
            let entry = &mut entries.all[from];
            match link {
                Link::Type => entry.of_type = Some(to),
                Link::Origin => entry.origin = Some(to),
                Link::Container => entry.container = Some(to),
            }
        }
        Ok(entries)
    }

    /// The entries directly below `parent`.
    pub(crate) fn children(&self, parent: usize) -> impl Iterator<Item = usize> + '_ {
        let end = self.all[parent].end;
        let next = move |at: &usize| Some(self.all[*at].end).filter(|next| *next < end);
        core::iter::successors(Some(parent + 1).filter(|first| *first < end), next)
    }

    /// The unit that `entry` is in.
    pub(crate) fn unit(&self, entry: usize) -> usize {
        let mut at = entry;
        while self.all[at].parent != at {
            at = self.all[at].parent;
        }
        at
    }

    /// The function or the type that `entry` is in; the latter, of its own parts only.
    pub(crate) fn owner(&self, entry: usize) -> Option<usize> {
        let mut at = entry;
        if self.all[at].tag == dw::DW_TAG_subprogram {
            return Some(at);
        }
        loop {
            let parent = self.all[at].parent;
            match self.all[parent].tag {
                dw::DW_TAG_subprogram
                | dw::DW_TAG_structure_type
                | dw::DW_TAG_class_type
                | dw::DW_TAG_union_type => return Some(parent),
                _ if parent == at => return None,
                _ => at = parent,
            }
        }
    }

    /// What `entry` is a copy or the definition of, and what that is, beginning with itself.
    pub(crate) fn origins(&self, entry: usize) -> impl Iterator<Item = usize> + '_ {
        // Damaged information may go round in a circle.
        core::iter::successors(Some(entry), |at| self.all[*at].origin).take(8)
    }

    /// The last of them.
    pub(crate) fn origin(&self, entry: usize) -> usize {
        self.origins(entry).last().unwrap_or(entry)
    }

    /// The name, which may be its origin's.
    pub(crate) fn name(&self, entry: usize) -> Option<&str> {
        let own = self.all[entry].name.as_deref();
        own.or_else(|| self.all[self.origin(entry)].name.as_deref())
    }
}

/// What was read so far.
struct Reading<'a> {
    entries: Entries<'a>,
    places: HashMap<Place, usize>,
    links: Vec<(usize, Link, Place)>,
}

impl<'a> Reading<'a> {
    fn unit(
        &mut self,
        dwarf: &gimli::Dwarf<Bytes<'a>>,
        header: gimli::UnitHeader<Bytes<'a>>,
    ) -> gimli::Result<()> {
        let unit = dwarf.unit(header)?;
        self.entries.is_elsewhere |= matches!(unit.header.type_(), UnitType::Skeleton(_));
        let signed = match unit.header.type_() {
            UnitType::Type {
                type_signature,
                type_offset,
            } => Some((type_offset, type_signature.0)),
            _ => None,
        };
        let mut raw = unit.entries_raw(None)?;
        let mut open: Vec<usize> = Vec::new();
        while !raw.is_empty() {
            let (offset, depth) = (raw.next_offset(), raw.next_depth());
            let index = self.entries.all.len();
            let depth = usize::try_from(depth).unwrap_or(0);
            while open.len() > depth {
                let closed = open.pop().unwrap_or_default();
                self.entries.all[closed].end = index;
            }
            let Some(abbreviation) = raw.read_abbreviation()? else {
                continue;
            };
            let parent = open.last().copied().unwrap_or(index);
            self.entries
                .all
                .push(Entry::new(abbreviation.tag(), parent, index + 1));
            open.push(index);
            let place = offset.to_unit_section_offset(&unit);
            self.places.insert(Place::At(place), index);
            if let Some((_, signature)) = signed.filter(|(of, _)| *of == offset) {
                self.places.insert(Place::Signed(signature), index);
            }
            let mut old_bits = None;
            for specification in abbreviation.attributes() {
                let attribute = raw.read_attribute(*specification)?;
                if attribute.name() == dw::DW_AT_bit_offset {
                    old_bits = attribute.udata_value();
                } else {
                    self.attribute(dwarf, &unit, index, &attribute)?;
                }
            }
            if let Some(bit_offset) = old_bits {
                self.entries.all[index].place_old_bits(bit_offset, dwarf_is_little(dwarf));
            }
        }
        let end = self.entries.all.len();
        for open in open {
            self.entries.all[open].end = end;
        }
        Ok(())
    }

    fn attribute(
        &mut self,
        dwarf: &gimli::Dwarf<Bytes<'a>>,
        unit: &gimli::Unit<Bytes<'a>>,
        index: usize,
        attribute: &gimli::Attribute<Bytes<'a>>,
    ) -> gimli::Result<()> {
        let value = attribute.value();
        let text =
            || Ok::<_, gimli::Error>(Some(dwarf.attr_string(unit, value)?.to_string_lossy()));
        let entry = &mut self.entries.all[index];
        match attribute.name() {
            dw::DW_AT_name => entry.name = text()?,
            dw::DW_AT_producer => entry.producer = text()?,
            dw::DW_AT_language => {
                entry.language = match value {
                    AttributeValue::Language(language) => Some(language),
                    _ => None,
                }
            }
            dw::DW_AT_type => self.link(unit, index, Link::Type, value),
            dw::DW_AT_abstract_origin | dw::DW_AT_specification | dw::DW_AT_signature => {
                self.link(unit, index, Link::Origin, value);
            }
            dw::DW_AT_containing_type => self.link(unit, index, Link::Container, value),
            dw::DW_AT_declaration => entry.is_declaration = true,
            dw::DW_AT_artificial => entry.is_artificial = true,
            dw::DW_AT_external => entry.is_external = true,
            dw::DW_AT_byte_size => entry.size = attribute.udata_value(),
            dw::DW_AT_alignment => entry.align = attribute.udata_value(),
            dw::DW_AT_encoding => {
                entry.encoding = match value {
                    AttributeValue::Encoding(encoding) => Some(encoding.0.into()),
                    _ => None,
                }
            }
            dw::DW_AT_bit_size => entry.bits = attribute.udata_value(),
            dw::DW_AT_data_bit_offset => entry.at = attribute.udata_value(),
            dw::DW_AT_data_member_location => {
                let bytes = attribute.udata_value().or_else(|| plus_constant(&value));
                entry.at = bytes.and_then(|bytes| bytes.checked_mul(8));
            }
            dw::DW_AT_count => entry.count = attribute.udata_value(),
            dw::DW_AT_upper_bound => {
                // GCC writes -1 of an array without any items.
                let bound = attribute.sdata_value().or_else(|| match value {
                    AttributeValue::Udata(bound) => i64::try_from(bound).ok(),
                    _ => None,
                });
                entry.count = bound.and_then(|bound| u64::try_from(bound.checked_add(1)?).ok());
            }
            dw::DW_AT_const_value | dw::DW_AT_discr_value => entry.value = number(&value),
            dw::DW_AT_vtable_elem_location => entry.slot = constant(&value),
            dw::DW_AT_location => entry.is_static = is_static(&value),
            dw::DW_AT_decl_file => {
                if let AttributeValue::FileIndex(file) = value {
                    entry.file = source_file(dwarf, unit, file);
                }
            }
            dw::DW_AT_low_pc if entry.tag == dw::DW_TAG_subprogram => {
                if let Some(address) = dwarf.attr_address(unit, value)? {
                    self.entries.functions.insert(address, index);
                }
            }
            dw::DW_AT_ranges if entry.tag == dw::DW_TAG_subprogram => {
                if let Some(mut ranges) = dwarf.attr_ranges(unit, value)? {
                    while let Some(range) = ranges.next()? {
                        self.entries.functions.insert(range.begin, index);
                    }
                }
            }
            dw::DW_AT_dwo_name | dw::DW_AT_GNU_dwo_name => self.entries.is_elsewhere = true,
            _ => {}
        }
        Ok(())
    }

    fn link(
        &mut self,
        unit: &gimli::Unit<Bytes<'a>>,
        from: usize,
        link: Link,
        value: AttributeValue<Bytes<'a>>,
    ) {
        let place = match value {
            AttributeValue::UnitRef(offset) => Place::At(offset.to_unit_section_offset(unit)),
            AttributeValue::DebugInfoRef(offset) => Place::At(offset.into()),
            AttributeValue::DebugTypesRef(signature) => Place::Signed(signature.0),
            _ => return,
        };
        self.links.push((from, link, place));
    }
}

impl Entry<'_> {
    fn new(tag: DwTag, parent: usize, end: usize) -> Self {
        Self {
            tag,
            parent,
            end,
            name: None,
            of_type: None,
            origin: None,
            container: None,
            is_declaration: false,
            is_artificial: false,
            is_external: false,
            is_static: false,
            size: None,
            align: None,
            at: None,
            bits: None,
            count: None,
            value: None,
            encoding: None,
            slot: None,
            file: None,
            producer: None,
            language: None,
        }
    }

    /// Places a bit-field as DWARF 2 and 3 have it: `bit_offset` bits from the most significant bit
    /// of the unit that has it, which has `size` bytes.
    fn place_old_bits(&mut self, bit_offset: u64, is_little: bool) {
        self.at = self.old_bits(bit_offset, is_little);
    }

    fn old_bits(&self, bit_offset: u64, is_little: bool) -> Option<u64> {
        let (at, bits) = (self.at.unwrap_or(0), self.bits?);
        if !is_little {
            return at.checked_add(bit_offset);
        }
        let unit = self.size?.checked_mul(8)?;
        at.checked_add(unit)?
            .checked_sub(bit_offset.checked_add(bits)?)
    }
}

fn dwarf_is_little(dwarf: &gimli::Dwarf<Bytes<'_>>) -> bool {
    dwarf.debug_str.reader().endian() == RunTimeEndian::Little
}

/// The source file with that number, without its folder.
fn source_file<'a>(
    dwarf: &gimli::Dwarf<Bytes<'a>>,
    unit: &gimli::Unit<Bytes<'a>>,
    file: u64,
) -> Option<Cow<'a, str>> {
    let header = unit.line_program.as_ref()?.header();
    let path = dwarf
        .attr_string(unit, header.file(file)?.path_name())
        .ok()?;
    let path = path.slice().rsplit(|byte| *byte == b'/').next()?;
    Some(String::from_utf8_lossy(path))
}

/// A number, whatever its size.
fn number(value: &AttributeValue<Bytes<'_>>) -> Option<i128> {
    match value {
        AttributeValue::Block(bytes) if bytes.len() <= size_of::<i128>() => {
            let bytes = bytes.slice().iter().rev();
            Some(bytes.fold(0, |all, byte| all << 8 | i128::from(*byte)))
        }
        value => {
            let signed = value.sdata_value().map(i128::from);
            signed.or_else(|| value.udata_value().map(i128::from))
        }
    }
}

/// What the expression `DW_OP_plus_uconst` adds (DWARF 2 has members placed by it).
fn plus_constant(value: &AttributeValue<Bytes<'_>>) -> Option<u64> {
    let mut bytes = value.exprloc_value()?.0;
    let is_plus = bytes.read_u8().ok()? == dw::DW_OP_plus_uconst.0;
    is_plus.then(|| bytes.read_uleb128().ok())?
}

/// The number, or the value of the expression `DW_OP_constu`.
fn constant(value: &AttributeValue<Bytes<'_>>) -> Option<u64> {
    let of_expression = || {
        let mut bytes = value.exprloc_value()?.0;
        match dw::DwOp(bytes.read_u8().ok()?) {
            dw::DW_OP_constu => bytes.read_uleb128().ok(),
            dw::DwOp(op) => {
                let literal = op.checked_sub(dw::DW_OP_lit0.0)?;
                (literal < 32).then_some(literal.into())
            }
        }
    };
    value.udata_value().or_else(of_expression)
}

/// Whether a variable at that place has an address of its own, or each thread has one.
fn is_static(value: &AttributeValue<Bytes<'_>>) -> bool {
    let Some(expression) = value.exprloc_value() else {
        return false;
    };
    let bytes = expression.0.slice();
    let starts = [dw::DW_OP_addr, dw::DW_OP_addrx, dw::DW_OP_GNU_addr_index];
    let ends = [dw::DW_OP_form_tls_address, dw::DW_OP_GNU_push_tls_address];
    let is = |byte: Option<&u8>, ops: &[dw::DwOp]| {
        byte.is_some_and(|byte| ops.iter().any(|op| op.0 == *byte))
    };
    is(bytes.first(), &starts) || is(bytes.last(), &ends)
}
