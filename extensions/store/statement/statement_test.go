package statement

import "testing"

func TestParse(t *testing.T) {
	for text, want := range map[string]Statement{
		"SELECT 1":                                {Verb: Read},
		"  -- why\n/* not */ select 1;\n":         {Verb: Read},
		"VALUES (1)":                              {Verb: Read},
		"EXPLAIN QUERY PLAN DELETE FROM t":        {Verb: Read},
		"SELECT ';'":                              {Verb: Read, Script: true},
		"SELECT 1; DELETE FROM t":                 {Verb: Read, Script: true},
		"INSERT INTO `notes` (id) VALUES (1)":     {Verb: Write, Table: "notes"},
		"insert or replace into Notes values (1)": {Verb: Write, Table: "notes"},
		"INSERT INTO main.notes VALUES (1)":       {Verb: Write},
		"INSERT INTO [my notes] VALUES (1)":       {Verb: Write, Table: "my notes"},
		"REPLACE INTO \"a\" VALUES (1)":           {Verb: Write, Table: "a"},
		"UPDATE OR IGNORE jobs_queue SET a = 1":   {Verb: Write, Table: "jobs_queue"},
		"UPDATE `or` SET a = 1":                   {Verb: Write, Table: "or"},
		"DELETE FROM{{x":                          {Verb: Write},
		"DELETE FROM jobs_queue WHERE 1":          {Verb: Write, Table: "jobs_queue"},
		"WITH a AS (SELECT ')' FROM (VALUES (1))), \"INSERT\" AS (SELECT 2) SELECT 1":      {Verb: Read},
		"WITH RECURSIVE a(x) AS MATERIALIZED (SELECT 1) INSERT INTO notes SELECT * FROM a": {Verb: Write, Table: "notes"},
		"WITH a AS (SELECT 1) DELETE FROM notes":                                           {Verb: Write, Table: "notes"},
		"WITH broken":                                                                      {},
		"CREATE TABLE t (id)":                                                              {},
		"VACUUM":                                                                           {},
		"":                                                                                 {},
		"PRAGMA optimize":                                                                  {Verb: Pragma},
		"begin immediate":                                                                  {Verb: Begin},
		"COMMIT":                                                                           {Verb: Commit},
		"END TRANSACTION":                                                                  {Verb: Commit},
		"ROLLBACK":                                                                         {Verb: Rollback},
		"ROLLBACK TRANSACTION":                                                             {Verb: Rollback},
		"ROLLBACK TO a":                                                                    {Verb: Savepoint},
		"ROLLBACK TRANSACTION TO SAVEPOINT a":                                              {Verb: Savepoint},
		"SAVEPOINT a":                                                                      {Verb: Savepoint},
		"RELEASE a":                                                                        {Verb: Savepoint},
	} {
		if got := Parse(text); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}

// FuzzParse looks for texts that the parser does not end on.
func FuzzParse(f *testing.F) {
	f.Add("WITH a AS (SELECT 1) INSERT OR ROLLBACK INTO [x] VALUES ('--', \"/*\")")
	f.Add("/* -- */ UPDATE `a``b` SET c = ';'")
	f.Fuzz(func(_ *testing.T, text string) { Parse(text) })
}
