package units

import (
	"strings"
	"testing"
)

func TestSanitize(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"alice", "alice"},
		{"alice@uni.example", "alice"},
		{"first.last", "first_last"},
		{"a-b", "a_b"},
		{"a--.b", "a_b"},
		{"a__b", "a_b"},
		{"-a-", "a"},
		{`DOM\alice`, "DOM_alice"},
		{"x:y", "x:y"},
		{"é", ""},
		{"@x", ""},
		{"", ""},
		{strings.Repeat("a", 32), strings.Repeat("a", 32)},
		{strings.Repeat("a", 33), strings.Repeat("a", 27) + "_b4f1"}, // as printf %s aaa… | md5sum
	} {
		if got := Sanitize(c.in); got != c.want {
			t.Errorf("Sanitize(%q) = %q, want %q", c.in, got, c.want)
		}
	}
	if a, b := Sanitize(strings.Repeat("a", 33)), Sanitize(strings.Repeat("a", 34)); a == b {
		t.Errorf("two long names share %q", a)
	}
}

func TestSlicesAreNeverShared(t *testing.T) {
	got := Slices([]User{{"a-b", 1002, "s"}, {"a_b", 1001, "s"}, {"a.b@x", 1003, "s"}, {"é", 1004, "s"}, {"a_b_1005", 1000, "s"}, {"a b", 1005, "s"}})
	want := map[uint32]string{1001: "a_b", 1002: "a_b_1002", 1003: "a_b_1003", 1004: "u1004", 1000: "a_b_1005", 1005: "a_b_1005_1005"}
	for uid, name := range want {
		if got[uid] != name {
			t.Errorf("uid %d: slice %q, want %q", uid, got[uid], name)
		}
	}
}

func TestCgroupParent(t *testing.T) {
	if got, want := CgroupParent("systemd", "student", "alice"), "ds01-student-alice.slice"; got != want {
		t.Errorf("systemd: %q, want %q", got, want)
	}
	want := "/ds01.slice/ds01-phd_staff.slice/ds01-phd_staff-alice.slice"
	if got := CgroupParent("cgroupfs", "phd-staff", "alice"); got != want {
		t.Errorf("cgroupfs: %q, want %q", got, want)
	}
}

func TestUserOf(t *testing.T) {
	for _, c := range []struct {
		parent, user string
		ok           bool
	}{
		{CgroupParent("systemd", "student", "alice"), "alice", true},
		{CgroupParent("cgroupfs", "phd-staff", "a_b"), "a_b", true},
		{"", "", false},
		{"/docker", "", false},
		{"system.slice", "", false},
		{"/ds01.slice/ds01-student.slice", "", false},
		{"ds01--.slice", "", false},
		{"/ds01-student-alice.slice/other", "", false},
	} {
		if user, ok := UserOf(c.parent); user != c.user || ok != c.ok {
			t.Errorf("%q: %q, %t, want %q, %t", c.parent, user, ok, c.user, c.ok)
		}
	}
}
