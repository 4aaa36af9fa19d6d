package limits

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"

	"go.uber.org/zap"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// write makes files below a directory of the test.
func write(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// sections takes apart "-- name --" lines and what follows each.
func sections(text string) map[string]string {
	out := make(map[string]string)
	name := ""
	for line := range strings.Lines(text) {
		if is, ok := strings.CutPrefix(line, "-- "); ok && strings.HasSuffix(is, " --\n") {
			name = strings.TrimSuffix(is, " --\n")
			out[name] = ""
		} else if name != "" {
			out[name] += line
		}
	}
	return out
}

// answer is what the limits of a directory come to: problems, or notes and each user's
// limits. users has a line per user: the name, and then groups of the system.
func answer(t *testing.T, dir, users string) string {
	var out strings.Builder
	s, err := Open(filepath.Join(dir, "resource-limits.yaml"), zap.NewNop())
	if err != nil {
		fmt.Fprintln(&out, err)
		return strings.ReplaceAll(out.String(), dir+"/", "")
	}
	for _, n := range s.Notes() {
		fmt.Fprintln(&out, "note:", n)
	}
	if users, groups := s.Admins(); len(users)+len(groups) > 0 {
		fmt.Fprintln(&out, "admins:", users, groups)
	}
	for line := range strings.Lines(users) {
		words := strings.Fields(line)
		group, err := s.GroupOf(words[0], func(groups []string) (bool, error) {
			return slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(words[1:], g) }), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		aggregate := ""
		if s.Of(words[0], group).Aggregate == nil {
			aggregate = ", no aggregate"
		}
		fmt.Fprintf(&out, "%s: %s%s\n", words[0], group, aggregate)
		table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
		for _, l := range s.Explain(words[0], group) {
			if l.From != "not set" {
				fmt.Fprintf(table, "  %s\t%s\t%s\n", l.Key, l.Value, l.From)
			}
		}
		table.Flush()
	}
	return strings.ReplaceAll(out.String(), dir+"/", "")
}

// TestGolden reads each file of testdata: files of a directory and a list of users, a
// line of dashes, and what they come to.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, _ := strings.Cut(string(text), "----\n")
			dir := t.TempDir()
			in := sections(input)
			users := in["users"]
			delete(in, "users")
			write(t, dir, in)
			got := answer(t, dir, users)
			if *update {
				if err := os.WriteFile(file, []byte(input+"----\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}
