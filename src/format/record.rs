//! Fields of fixed-size records, at offsets the compiler checks.
//!
//! Source: none; the layout tables of the records that use it name theirs.
//!
//! The byte order stays with the caller: `u32::from_le_bytes(get::<0x24, _, _>(record))`.

/// Reads the `LEN` bytes at offset `AT` of a record.
#[inline]
pub(crate) fn get<const AT: usize, const LEN: usize, const N: usize>(record: &[u8; N]) -> [u8; LEN] {
    const { assert!(AT + LEN <= N, "the field ends inside the record") };
    let (_, field) = record.split_at(AT);
    *field.first_chunk().expect("asserted when compiled")
}

/// Writes `field` at offset `AT` of a record.
#[inline]
pub(crate) fn put<const AT: usize, const LEN: usize, const N: usize>(record: &mut [u8; N], field: [u8; LEN]) {
    const { assert!(AT + LEN <= N, "the field ends inside the record") };
    let (_, rest) = record.split_at_mut(AT);
    *rest.first_chunk_mut().expect("asserted when compiled") = field;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_goes_where_it_came_from() {
        let mut record = [0_u8; 8];
        put::<3, _, _>(&mut record, 0x0102_u16.to_le_bytes());
        assert_eq!(record, [0, 0, 0, 2, 1, 0, 0, 0]);
        assert_eq!(u16::from_le_bytes(get::<3, _, _>(&record)), 0x0102);
        assert_eq!(get::<7, 1, _>(&record), [0]);
    }
}
