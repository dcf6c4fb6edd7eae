package settings

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

// Bytes is a size in bytes. Its text is a whole number, alone or with a unit: B, kB, MB, GB, TB (powers of 1000) or KiB,
// MiB, GiB, TiB (powers of 1024), in any case.
type Bytes int64

type byteUnit struct {
	name string
	size int64
}

// byteUnits are the accepted units. A name comes before every name that ends like it, and the largest size first.
func byteUnits() [9]byteUnit {
	return [...]byteUnit{
		{"TiB", 1 << 40},
		{"TB", 1e12},
		{"GiB", 1 << 30},
		{"GB", 1e9},
		{"MiB", 1 << 20},
		{"MB", 1e6},
		{"KiB", 1 << 10},
		{"kB", 1e3},
		{"B", 1},
	}
}

// UnmarshalText reads a size. Negative sizes, fractions and sizes of 2^63 bytes and more are errors.
func (b *Bytes) UnmarshalText(text []byte) error {
	digits, size := strings.TrimSpace(string(text)), int64(1)
	for _, unit := range byteUnits() {
		if cut := len(digits) - len(unit.name); cut > 0 && strings.EqualFold(digits[cut:], unit.name) {
			digits, size = strings.TrimSpace(digits[:cut]), unit.size
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || int64(n) > math.MaxInt64/size {
		return errors.New("must be a size such as 1048576, 512KiB or 10MB, below 8 EiB")
	}
	*b = Bytes(int64(n) * size)
	return nil
}

// MarshalText writes the size with the largest unit that divides it.
func (b Bytes) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// String is the size with the largest unit that divides it.
func (b Bytes) String() string {
	for _, unit := range byteUnits() {
		if unit.size > 1 && b != 0 && int64(b)%unit.size == 0 {
			return strconv.FormatInt(int64(b)/unit.size, 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(b), 10)
}
