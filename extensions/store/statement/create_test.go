package statement

import (
	"slices"
	"testing"
)

func TestCanonical(t *testing.T) {
	const want = "WITH `notes__pb_create__` as (SELECT ? AS `id`,? AS `owner`,? AS `title`) SELECT (1) FROM `notes__pb_create__` WHERE (? IS NOT '' AND `notes__pb_create__`.`owner` = ?) LIMIT 1"
	for text, order := range map[string][]int{
		"WITH `notes__pb_create__M5Zsyv` as (SELECT ? AS `id`,? AS `owner`,? AS `title`) SELECT (1) FROM `notes__pb_create__M5Zsyv` WHERE (? IS NOT '' AND `notes__pb_create__M5Zsyv`.`owner` = ?) LIMIT 1": {0, 1, 2},
		"WITH `notes__pb_create__abcdef` as (SELECT ? AS `title`,? AS `id`,? AS `owner`) SELECT (1) FROM `notes__pb_create__abcdef` WHERE (? IS NOT '' AND `notes__pb_create__abcdef`.`owner` = ?) LIMIT 1": {1, 2, 0},
	} {
		if got, have := Canonical(text); got != want || !slices.Equal(have, order) {
			t.Errorf("%s\nbecame %s %v", text, got, have)
		}
	}
	for _, text := range []string{
		"", "SELECT 1", "WITH `a` as (SELECT 1) SELECT * FROM `a`",
		"WITH `notes__pb_create__short` as (SELECT ? AS `id`) SELECT 1",
		"WITH `notes__pb_create__abcdef` as (SELECT 1 AS `id`) SELECT 1",
		"WITH `notes__pb_create__abcdef` as (SELECT ? AS `id`,lower(?) AS `x`) SELECT 1",
		"WITH `notes__pb_create__abcdef` as (SELECT ? AS `id`",
	} {
		if got, order := Canonical(text); got != text || order != nil {
			t.Errorf("%s\nbecame %s %v", text, got, order)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	f.Add("WITH `notes__pb_create__abcdef` as (SELECT ? AS `b`,? AS `a`) SELECT (1) FROM `notes__pb_create__abcdef`")
	f.Fuzz(func(t *testing.T, text string) {
		got, order := Canonical(text)
		if order == nil && got != text {
			t.Errorf("%q became %q without an order", text, got)
		}
		sorted := slices.Clone(order)
		slices.Sort(sorted)
		for i, from := range sorted {
			if i != from {
				t.Fatalf("%v is no permutation", order)
			}
		}
	})
}
