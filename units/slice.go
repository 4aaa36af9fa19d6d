// Package units knows systemd's side of ds01-proxy: the names of slices, their unit files
// and drop-ins, and how systemd is made to have them.
package units

import (
	"crypto/md5" // a short form of names that other tools compute too, not a secret
	"encoding/hex"
	"sort"
	"strconv"
	"strings"
)

// maxName is the longest sanitised name, in bytes; longer ones are cut to
// shortName bytes, an underscore and four digits of a digest.
const (
	maxName   = 32
	shortName = 27
)

// Sanitize turns a user or group name into one that can stand between the
// dashes of a slice name, where a dash of its own would nest one user's slice
// inside another's. Everything from the first '@' is cut, characters outside
// [a-zA-Z0-9_:] become '_', runs of '_' collapse and its ends are trimmed. The
// result is "" where nothing is left.
func Sanitize(name string) string {
	cut, _, _ := strings.Cut(name, "@")
	var b strings.Builder
	for _, r := range cut {
		ok := r == ':' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		if ok {
			b.WriteRune(r)
		} else if s := b.String(); !strings.HasSuffix(s, "_") {
			b.WriteByte('_')
		}
	}
	out := strings.Trim(b.String(), "_")
	if len(out) > maxName {
		sum := md5.Sum([]byte(name))
		out = out[:shortName] + "_" + hex.EncodeToString(sum[:2])
	}
	return out
}

// A User is one user to be given a slice.
type User struct {
	Name  string
	UID   uint32
	Group string
}

// Slices gives each user a slice name component that no other user of the
// server has: of two users whose names come out the same, the one with the
// higher uid gets "_<uid>" appended (again, should that be somebody's name too). The result is keyed by uid.
func Slices(users []User) map[uint32]string {
	order := append([]User(nil), users...)
	sort.Slice(order, func(i, j int) bool { return order[i].UID < order[j].UID })
	taken := make(map[string]bool, len(order))
	out := make(map[uint32]string, len(order))
	for _, u := range order {
		if _, done := out[u.UID]; done {
			continue
		}
		name := Slice(u, taken)
		taken[name] = true
		out[u.UID] = name
	}
	return out
}

// Slice gives one user a slice name component that is not taken.
func Slice(u User, taken map[string]bool) string {
	name := Sanitize(u.Name)
	if name == "" {
		name = "u" + strconv.FormatUint(uint64(u.UID), 10)
	}
	for taken[name] {
		name += "_" + strconv.FormatUint(uint64(u.UID), 10)
	}
	return name
}

// CgroupParent returns what the Engine's HostConfig.CgroupParent must say to
// put a container into ds01-<group>-<user>.slice. With the systemd driver that
// is the slice's name; with cgroupfs it is the path that systemd's nesting at
// every dash gives the same slice.
func CgroupParent(driver, group, user string) string {
	if driver == "systemd" {
		return userSlice(group, user)
	}
	return CgroupPath(group, user)
}

// CgroupPath returns where the slice's cgroup is below the root of each hierarchy that
// has it, whatever the Engine's cgroup driver:
// /ds01.slice/ds01-<group>.slice/ds01-<group>-<user>.slice.
func CgroupPath(group, user string) string {
	return "/" + rootSlice + "/" + groupSlice(group) + "/" + userSlice(group, user)
}

// The slices of a user, from the outermost. systemd nests them by the dashes in their names.
const rootSlice = "ds01.slice"

func groupSlice(group string) string { return "ds01-" + groupPart(group) + ".slice" }

func userSlice(group, user string) string {
	return "ds01-" + groupPart(group) + "-" + user + ".slice"
}

// groupPart is a group's name in those of slices, "none" where nothing of it is left.
func groupPart(group string) string {
	if g := Sanitize(group); g != "" {
		return g
	}
	return "none"
}

// UserOf returns the user's part of a cgroup parent that CgroupParent made, in
// either form, and reports false for any other.
func UserOf(cgroupParent string) (user string, ok bool) {
	name, ok := strings.CutSuffix(cgroupParent[strings.LastIndexByte(cgroupParent, '/')+1:], ".slice")
	parts := strings.Split(name, "-")
	if !ok || len(parts) != 3 || parts[0] != "ds01" || parts[1] == "" || parts[2] == "" {
		return "", false
	}
	return parts[2], true
}
