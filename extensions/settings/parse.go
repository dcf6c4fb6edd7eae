package settings

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// typeName is the word that the reference uses for a type, or "" for a type that cannot be a setting.
func typeName(t reflect.Type) string {
	switch reflect.New(t).Interface().(type) {
	case *string, *bool, *int, *int64:
		return t.String()
	case *float64:
		return "float"
	case *time.Duration:
		return "duration"
	case *Bytes:
		return "bytes"
	case *[]string:
		return "list"
	case *[]netip.Prefix:
		return "addresses"
	case encoding.TextUnmarshaler:
		return strings.ToLower(t.Name())
	}
	return ""
}

// zeroText is the default to show for a field that declares none.
func zeroText(v reflect.Value) string {
	switch zero := v.Interface().(type) {
	case bool, int, int64, float64, time.Duration, Bytes:
		return fmt.Sprint(zero)
	}
	return ""
}

// parse stores the meaning of text in the addressable value target. Its errors complete the sentence "the value ...".
func parse(target reflect.Value, text string) error {
	trimmed := strings.TrimSpace(text)
	var err error
	switch v := target.Addr().Interface().(type) {
	case *string:
		*v = text
	case *[]string:
		*v = splitList(text)
	case *bool:
		if *v, err = strconv.ParseBool(trimmed); err != nil {
			return errors.New("must be true or false")
		}
	case *int:
		if *v, err = strconv.Atoi(trimmed); err != nil {
			return errors.New("must be a whole number that fits in " + strconv.Itoa(strconv.IntSize) + " bits")
		}
	case *int64:
		if *v, err = strconv.ParseInt(trimmed, 10, 64); err != nil {
			return errors.New("must be a whole number that fits in 64 bits")
		}
	case *float64:
		if *v, err = strconv.ParseFloat(trimmed, 64); err != nil || math.IsNaN(*v) || math.IsInf(*v, 0) {
			return errors.New("must be a finite number")
		}
	case *time.Duration:
		*v, err = ParseDuration(trimmed)
	case *[]netip.Prefix:
		*v, err = parsePrefixes(text)
	case *Bytes:
		err = v.UnmarshalText([]byte(trimmed))
	case encoding.TextUnmarshaler:
		if trimmed == "" {
			return errors.New("must not be empty")
		}
		if err := v.UnmarshalText([]byte(trimmed)); err != nil {
			return fmt.Errorf("must be a valid %s (%w)", typeName(target.Type()), err)
		}
	}
	return err
}

// splitList splits at commas, trims the items and drops empty ones.
func splitList(text string) []string {
	var items []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// ParseDuration is time.ParseDuration with leading whole days ("30d", "1d12h") and without negative results.
func ParseDuration(text string) (time.Duration, error) {
	bad := errors.New("must be a duration such as 500ms, 30s, 15m, 12h or 30d, at most 106751d")
	days, rest, hasDays := strings.Cut(text, "d")
	if !hasDays {
		days, rest = "0", text
	} else if rest == "" {
		rest = "0"
	}
	const day = 24 * time.Hour
	n, err := strconv.ParseUint(days, 10, 32)
	if err != nil || n > uint64(math.MaxInt64/day) {
		return 0, bad
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || rest[0] == '-' || (hasDays && rest[0] == '+') || d > math.MaxInt64-time.Duration(n)*day {
		return 0, bad
	}
	return time.Duration(n)*day + d, nil
}

// parsePrefixes reads a list of networks. Host bits are cleared and IPv4 in IPv6 notation becomes IPv4, because
// netip.Prefix.Contains would otherwise never match it.
func parsePrefixes(text string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, item := range splitList(text) {
		var prefix netip.Prefix
		addr, err := netip.ParseAddr(item)
		if err == nil && addr.Zone() == "" {
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		} else if prefix, err = netip.ParsePrefix(item); err != nil {
			return nil, fmt.Errorf("must be a list of addresses or networks such as 10.0.0.0/8 (%s is neither)", quote(item))
		}
		if a := prefix.Addr(); a.Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
		}
		prefixes = append(prefixes, prefix.Masked())
	}
	return prefixes, nil
}
