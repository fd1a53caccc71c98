// total = the sum over pieces b of mix(b G + sum over i of words[b, i] key(i)), mod 2^64, for the 32-bit words of `size`
// bytes, zeros behind the last: 64 bits that depend on every byte and on its place.  Pieces have WORDS words.
// A key is odd, so that a change of one word changes the sum of its piece, and `mix` loses nothing.  What two changes do
// cancels with a chance of 2^-32 at most, and `mix` keeps patterns over several pieces from doing it together.
// An item is a piece.  Integers are added in any order to the same sum, so threads do not show in it.
// Reference: `expected` in tests/test_digest.py.  kernels/digest.cu computes the same.

enum { WORDS = 512, PIECE = 4 * WORDS };  // of a piece, and its bytes
static constexpr uint64 G = 0x9E3779B97F4A7C15;

static constexpr uint64 mix(uint64 x) {  // as SplitMix64 does: one to one
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

struct Keys {  // their halves apart: a product of two 32-bit words is one instruction, and of the upper ones half is kept
    uint32 low[WORDS], high[WORDS];
    constexpr Keys() : low(), high() {
        for (int i = 0; i < WORDS; ++i) {
            const uint64 key = mix((i + 1) * G) | 1;
            low[i] = uint32(key);
            high[i] = uint32(key >> 32);
        }
    }
};
alignas(64) static constexpr Keys KEYS;

struct Bytes {
    const unsigned char* data;
    int64 size;
    uint64 total;
};

DEVICE uint64 piece(const unsigned char* data) {
    uint64 low = 0;
    uint32 high = 0;
    for (int i = 0; i < WORDS; ++i) {
        uint32 x;
        memcpy(&x, data + 4 * i, sizeof x);
        low += uint64(x) * KEYS.low[i];
        high += x * KEYS.high[i];
    }
    return low + (uint64(high) << 32);
}

extern "C" void digest(Slot* slots, int64 first, int64 last, unsigned char*) {
    Bytes& bytes = *(Bytes*)slots;
    uint64 sum = 0;
    for (int64 b = first; b < last; ++b) {
        const unsigned char* from = bytes.data + b * PIECE;
        const int64 left = bytes.size - b * PIECE;
        if (left < PIECE) {
            unsigned char padded[PIECE] = {};
            memcpy(padded, from, left);
            sum += mix(b * G + piece(padded));
        } else {
            sum += mix(b * G + piece(from));
        }
    }
    __atomic_fetch_add(&bytes.total, sum, __ATOMIC_RELAXED);
}
