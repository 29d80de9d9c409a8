//! Commands of queues: words and commands are two spellings of one thing.

use iopt_formats::command::virtio::{Config, Fault, Properties, Property, Request, Status};
use iopt_formats::command::{CommandError, amd as amd_queue, riscv as riscv_queue};
use iopt_formats::command::{smmuv3 as smmuv3_queue, vtd as vtd_queue};

use crate::fuzz::{joined, words};

/// A command of an SMMUv3.
pub fn smmuv3(bytes: &[u8]) -> bool {
    use smmuv3_queue::Command;
    same_words(words(bytes), Command::decode, Command::encode)
}

/// A command of an AMD IOMMU.
pub fn amd(bytes: &[u8]) -> bool {
    use amd_queue::Command;
    same_words(words(bytes), Command::decode, Command::encode)
}

/// A command of a RISC-V IOMMU.
pub fn riscv(bytes: &[u8]) -> bool {
    use riscv_queue::Command;
    same_words(words(bytes), Command::decode, Command::encode)
}

/// A descriptor of VT-d, of 128 bits and of 256.
pub fn vtd(bytes: &[u8]) -> bool {
    use vtd_queue::Descriptor;
    let is_narrow = same_words(words(bytes), Descriptor::decode, Descriptor::encode);
    let is_wide = same_words(
        words(bytes),
        Descriptor::decode_wide,
        Descriptor::encode_wide,
    );
    let [low, high, ..] = words::<4>(bytes);
    if let Ok(descriptor) = Descriptor::decode([low, high]) {
        assert_eq!(Descriptor::decode_wide([low, high, 0, 0]), Ok(descriptor));
    }
    is_narrow || is_wide
}

/// Checks that words which decode encode to themselves.
fn same_words<C, const N: usize>(
    words: [u64; N],
    decode: impl Fn([u64; N]) -> Result<C, CommandError>,
    encode: impl Fn(&C) -> [u64; N],
) -> bool {
    match decode(words) {
        Ok(command) => {
            assert_eq!(
                encode(&command),
                words,
                "words that decode encode otherwise"
            );
            true
        }
        Err(error) => {
            if let CommandError::ReservedBits { word, bits } = error {
                let there = words.get(usize::from(word)).map(|word| word & bits);
                assert_eq!(there, Some(bits), "bits are refused that are not set");
            }
            false
        }
    }
}

/// What passes between a virtio-iommu and its driver; the first byte says which of it.
pub fn virtio(bytes: &[u8]) -> bool {
    let Some((&kind, bytes)) = bytes.split_first() else {
        return false;
    };
    match kind % 5 {
        0 => Request::decode(bytes).is_ok_and(|request| {
            let read = &bytes[..request.read_len()];
            assert_eq!(request.encode().as_slice(), read);
            assert_eq!(Request::decode(read), Ok(request));
            true
        }),
        1 => Fault::decode(bytes).is_ok_and(|fault| {
            assert_eq!(fault.encode()[..], bytes[..Fault::LEN]);
            true
        }),
        2 => bytes.first_chunk().is_some_and(|bytes| {
            Config::decode(bytes).is_ok_and(|config| {
                assert_eq!(Config::decode(&config.encode()), Ok(config));
                true
            })
        }),
        3 => bytes.first_chunk().is_some_and(|tail| {
            Status::decode(*tail).is_ok_and(|status| {
                assert_eq!(status.encode()[0], tail[0]);
                true
            })
        }),
        _ => properties(bytes),
    }
}

fn properties(bytes: &[u8]) -> bool {
    let mut count = 0;
    let mut is_refused = false;
    for property in Properties::new(bytes) {
        assert!(!is_refused, "properties go on behind a malformed one");
        match property {
            Ok(property) => {
                count += 1;
                let mut again = Property::encode(&property).to_vec();
                again.extend([0; 4]);
                let again: Vec<_> = Properties::new(&again).collect();
                assert_eq!(again, [Ok(property)]);
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                is_refused = true;
            }
        }
    }
    assert!(count * Property::LEN <= bytes.len());
    count > 0 && !is_refused
}

/// Words with nothing but an opcode, where that is a command.
fn opcodes(run: fn(&[u8]) -> bool, shift: u32, len: usize) -> Vec<Vec<u8>> {
    let all = (0..0x1000_u64).map(|opcode| {
        let mut words = vec![0; len];
        words[0] = opcode << shift;
        joined(&[], &words)
    });
    all.filter(|bytes| run(bytes)).collect()
}

/// Commands of an SMMUv3 without operands.
pub fn smmuv3_seeds() -> Vec<Vec<u8>> {
    opcodes(smmuv3, 0, 2)
}

/// Descriptors of VT-d without operands.
pub fn vtd_seeds() -> Vec<Vec<u8>> {
    opcodes(vtd, 0, 4)
}

/// Commands of an AMD IOMMU without operands.
pub fn amd_seeds() -> Vec<Vec<u8>> {
    opcodes(amd, 52, 2)
}

/// Commands of a RISC-V IOMMU without operands.
pub fn riscv_seeds() -> Vec<Vec<u8>> {
    opcodes(riscv, 0, 2)
}

/// One of each that passes between a virtio-iommu and its driver.
pub fn virtio_seeds() -> Vec<Vec<u8>> {
    let head = |opcode: u64, domain: u64| opcode | domain << 32;
    let range = [0x1000, 0x2fff];
    let requests = [
        vec![head(1, 7), 3, 0],
        vec![head(2, 7), 3, 0],
        vec![head(3, 7), range[0], range[1], 0x8000_0000, 3],
        vec![head(4, 7), range[0], range[1], 0],
        [vec![head(5, 3)], vec![0; 8]].concat(),
    ];
    let requests = requests.iter().map(|words| joined(&[0], words));
    let others = [
        joined(&[1], &[2 | 1 << 32 | 1 << 40, 3, 0x1234]),
        joined(&[2], &[0x20_1000, 0, 0xffff_ffff, 0xffff_0000_0000, 0x200]),
        vec![3, 4, 0, 0, 0],
        joined(&[4], &[1 | 20 << 16 | 1 << 32, 0xfee0_0000, 0xfeef_ffff, 0]),
        // One of another type before it.
        joined(&[4], &[2 | 4 << 16, 1 | 20 << 16, 0x800_0000, 0x80f_ffff]),
    ];
    requests.chain(others).collect()
}
