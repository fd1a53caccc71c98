// total = the sum over pieces b of mix(b G + sum over i < HALF of (words[b, i] + key(i)) (words[b, HALF + i] + key'(i))),
// mod 2^64, for the 32-bit words of `size` bytes, zeros behind the last: 64 bits that depend on every byte and on its
// place.  Pieces have WORDS words; the sums of words and keys are mod 2^32.
// Changes within a piece cancel with a chance of 2^-32 (Black et al., "UMAC", 1999: NH), and `mix`, which loses nothing,
// keeps patterns over several pieces from cancelling together.
// An item is a piece.  Integers are added in any order to the same sum, so threads do not show in it.
// Reference: `expected` in tests/test_digest.py.  kernels/digest.cu computes the same.

enum { WORDS = 512, HALF = WORDS / 2, PIECE = 4 * WORDS };  // of a piece, and its bytes
static constexpr uint64 G = 0x9E3779B97F4A7C15;

static constexpr uint64 mix(uint64 x) {  // as SplitMix64 does: one to one
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
    return x ^ (x >> 31);
}

struct Keys {  // key(i) and key'(i): the halves of a 64-bit one
    uint32 low[HALF], high[HALF];
    constexpr Keys() : low(), high() {
        for (int i = 0; i < HALF; ++i) {
            const uint64 key = mix((i + 1) * G);
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
    uint64 sum = 0;
    for (int i = 0; i < HALF; ++i) {
        uint32 x, y;
        memcpy(&x, data + 4 * i, sizeof x);
        memcpy(&y, data + 4 * (HALF + i), sizeof y);
        x += KEYS.low[i];
        y += KEYS.high[i];
        sum += uint64(x) * y;
    }
    return sum;
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
