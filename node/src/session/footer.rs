//! A first look at a parquet file's footer, before a full parser sees it.
//!
//! The file comes from an algorithm. The parquet crate builds the schema by recursion and
//! reserves room by the counts that the footer claims, so a crafted footer could overflow
//! the stack or the memory of the node. This scan of the Thrift compact protocol
//! (FileMetaData of parquet-format) takes neither: it refuses deep schemas, long lists and
//! lists that are longer than the bytes that follow.

/// How deep columns may nest.
const MAX_SCHEMA_DEPTH: usize = 64;
/// How deep Thrift structures may nest; FileMetaData needs fewer than ten.
const MAX_THRIFT_DEPTH: usize = 24;
/// Longest list: columns, row groups, chunks of a row group.
const MAX_LIST: usize = 200_000;

const STRUCT: u8 = 12;
const LIST: u8 = 9;

/// Whether the footer's Thrift bytes are well formed and of bearable depth and size.
pub(super) fn check(footer: &[u8]) -> Result<(), &'static str> {
    let mut scan = Scan {
        bytes: footer,
        at: 0,
    };
    let mut children = Vec::new();
    scan.structure(0, &mut |scan, field, kind| {
        if (field, kind) != (2, LIST) {
            return Ok(false);
        }
        let (count, element) = scan.list_head()?;
        if element != STRUCT {
            return Err("the schema is not a list of structures");
        }
        for _ in 0..count {
            let mut own = 0;
            scan.structure(2, &mut |scan, field, kind| {
                // num_children, an i32
                if (field, kind) == (5, 5) {
                    own = scan.zigzag()?;
                    return Ok(true);
                }
                Ok(false)
            })?;
            children.push(usize::try_from(own).map_err(|_| "a negative number of children")?);
        }
        Ok(true)
    })?;
    depth(&children)
}

/// The schema is a tree in pre-order, each node with its number of children.
fn depth(children: &[usize]) -> Result<(), &'static str> {
    let mut open: Vec<usize> = Vec::new();
    for &count in children {
        if count > 0 {
            if open.len() >= MAX_SCHEMA_DEPTH {
                return Err("columns are nested too deep");
            }
            open.push(count);
            continue;
        }
        while let Some(left) = open.last_mut() {
            *left -= 1;
            if *left > 0 {
                break;
            }
            open.pop();
        }
    }
    if open.is_empty() {
        Ok(())
    } else {
        Err("the schema is cut short")
    }
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Field<'f> = &'f mut dyn FnMut(&mut Scan<'_>, i64, u8) -> Result<bool, &'static str>;

impl Scan<'_> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        let byte = *self.bytes.get(self.at).ok_or("the footer is cut short")?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, &'static str> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long")
    }

    fn zigzag(&mut self) -> Result<i64, &'static str> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip_bytes(&mut self, count: u64) -> Result<(), &'static str> {
        let count = usize::try_from(count).map_err(|_| "the footer is cut short")?;
        let end = self
            .at
            .checked_add(count)
            .filter(|&end| end <= self.bytes.len());
        self.at = end.ok_or("the footer is cut short")?;
        Ok(())
    }

    fn list_head(&mut self) -> Result<(usize, u8), &'static str> {
        let head = self.byte()?;
        let count = match head >> 4 {
            15 => usize::try_from(self.varint()?).unwrap_or(usize::MAX),
            short => usize::from(short),
        };
        if count > MAX_LIST {
            return Err("a list is too long");
        }
        Ok((count, head & 0x0f))
    }

    /// Walks a structure; `take` reads a field's value itself and says so, or leaves it.
    fn structure(&mut self, depth: usize, take: Field<'_>) -> Result<(), &'static str> {
        if depth > MAX_THRIFT_DEPTH {
            return Err("structures are nested too deep");
        }
        let mut field = 0_i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => self.zigzag()?,
                delta => field.saturating_add(i64::from(delta)),
            };
            let kind = head & 0x0f;
            if !take(self, field, kind)? {
                self.skip(kind, depth, false)?;
            }
        }
    }

    fn skip(&mut self, kind: u8, depth: usize, in_list: bool) -> Result<(), &'static str> {
        match kind {
            // In a structure a boolean is in the head; in a list it is a byte.
            1 | 2 if !in_list => Ok(()),
            1..=3 => self.byte().map(drop),
            4..=6 => self.varint().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let length = self.varint()?;
                self.skip_bytes(length)
            }
            9 | 10 => {
                if depth >= MAX_THRIFT_DEPTH {
                    return Err("structures are nested too deep");
                }
                let (count, element) = self.list_head()?;
                for _ in 0..count {
                    self.skip(element, depth + 1, true)?;
                }
                Ok(())
            }
            STRUCT => self.structure(depth + 1, &mut |_, _, _| Ok(false)),
            // FileMetaData has no maps.
            _ => Err("an unknown kind of field"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A footer with a schema of these numbers of children.
    fn footer(children: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x29, 0xfc];
        let mut count = children.len();
        while count >= 0x80 {
            bytes.push(count as u8 | 0x80);
            count >>= 7;
        }
        bytes.push(count as u8);
        for &own in children {
            if own > 0 {
                bytes.extend([0x55, own * 2]);
            }
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }

    #[test]
    fn takes_flat_schemas_and_refuses_deep_ones() {
        assert_eq!(check(&footer(&[2, 0, 0])), Ok(()));
        assert_eq!(check(&footer(&[2, 1, 0, 0])), Ok(()));
        let mut deep = vec![1; 100_000];
        deep.push(0);
        assert_eq!(check(&footer(&deep)), Err("columns are nested too deep"));
        assert_eq!(check(&footer(&[2, 0])), Err("the schema is cut short"));
        assert_eq!(
            check(&footer(&vec![0; MAX_LIST + 1])),
            Err("a list is too long")
        );
        assert!(check(&[]).is_err());
        assert!(check(&[0x1c; 1_000_000]).is_err());
        assert!(check(&[0x19; 1_000_000]).is_err());
        assert!(check(&[0x29, 0xfc, 0xff, 0xff, 0x0b]).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>) {
            let _ = check(&bytes);
        }
    }
}
