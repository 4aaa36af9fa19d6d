package units

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ds01/ds01-proxy/policy"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func n(v int64) *int64 { return &v }

var all = &policy.Aggregate{CPUQuota: n(9600), MemoryMax: n(96 << 30), MemoryHigh: n(86 << 30), TasksMax: n(12288)}

func TestRender(t *testing.T) {
	for _, c := range []struct {
		golden, group, user string
		a                   *policy.Aggregate
	}{
		{"limits", "student", "alice", all},
		{"unlimited", "phd-staff@uni", "a_b_1002", nil},
		{"some", "", "u1004", &policy.Aggregate{CPUQuota: n(1), TasksMax: n(1)}},
	} {
		files, err := Render(c.group, c.user, c.a)
		if err != nil {
			t.Fatal(err)
		}
		var b strings.Builder
		for _, f := range files {
			b.WriteString("---- " + f.Path + "\n" + f.Text)
		}
		golden := filepath.Join("testdata", c.golden+".txt")
		if *update {
			if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if b.String() != string(want) {
			t.Errorf("%s:\n%s\nwant\n%s", c.golden, b.String(), want)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	for _, user := range []string{"", "a/b", "../x", "a\nb", "a-b", "a.b", "a b", "é", "a\x00", "%u", strings.Repeat("a", 300)} {
		if files, err := Render("student", user, nil); err == nil {
			t.Errorf("%q became %q", user, files)
		}
	}
	if _, err := Render("student", "alice", &policy.Aggregate{MemoryMax: n(0)}); err == nil || !strings.Contains(err.Error(), "memory max of 0") {
		t.Errorf("no memory at all: %v", err)
	}
	// A group is sanitised, whatever it says.
	files, err := Render("../../etc/x\n", "alice", nil)
	if err != nil || files[1].Path != "ds01-etc_x.slice" {
		t.Errorf("%q, %v", files, err)
	}
}

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	f := File{"a.slice.d/x.conf", "one\n"}
	for _, c := range []struct {
		text    string
		changed bool
	}{{"one\n", true}, {"one\n", false}, {"two\n", true}, {"two\n", false}} {
		f.Text = c.text
		changed, err := install(dir, f)
		if err != nil || changed != c.changed {
			t.Errorf("%q: changed %t, %v", c.text, changed, err)
		}
	}
	path := filepath.Join(dir, f.Path)
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o644 {
		t.Errorf("%v, %v", st, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "a.slice.d/.*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	// systemctl mask.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", path); err != nil {
		t.Fatal(err)
	}
	if _, err := install(dir, f); err == nil || !strings.Contains(err.Error(), "unmask") {
		t.Errorf("a masked unit: %v", err)
	}
}
