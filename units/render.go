package units

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ds01/ds01-proxy/policy"
)

// limitsDropIn is the file, in a slice's drop-in directory, that holds its limits.
const limitsDropIn = "10-resource-limits.conf"

// maxUnitName is systemd's longest unit name, in bytes.
const maxUnitName = 255

// A File is one of systemd's.
type File struct {
	// Path is relative to the directory of unit files, such as /etc/systemd/system.
	Path string
	Text string
}

// Render returns the files that give a user a slice: ds01.slice, the group's, the
// user's, and the drop-in of its limits, in this order. A nil aggregate and a nil field
// are no limit. The user is a component that Slice made. Errors: a user who cannot be part of a unit's
// name, and limits that systemd would not take.
func Render(group, user string, a *policy.Aggregate) ([]File, error) {
	if err := checkUser(group, user); err != nil {
		return nil, err
	}
	if err := a.Validate(); err != nil {
		return nil, fmt.Errorf("limits of %s: %w", userSlice(group, user), err)
	}
	root, parent, slice := rootSlice, groupSlice(group), userSlice(group, user)
	return []File{
		{root, sliceText("Containers of all users", "")},
		{parent, sliceText("Containers of group "+groupPart(group), root)},
		{slice, sliceText("Containers of user "+user, parent)},
		{filepath.Join(slice+".d", limitsDropIn), limitsText(a)},
	}, nil
}

// checkUser refuses what Slice does not make, before it becomes the name of a file or nests
// slices at another place.
func checkUser(group, user string) error {
	ok := user != "" && strings.Trim(user, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_:") == ""
	if name := userSlice(group, user); !ok || len(name) > maxUnitName {
		return fmt.Errorf("%q cannot be a user's part of a slice name: it may have letters, digits, '_' and ':', and the whole name %d bytes", user, maxUnitName)
	}
	return nil
}

func sliceText(description, parent string) string {
	var b strings.Builder
	b.WriteString("[Unit]\nDescription=" + description + "\n\n[Slice]\n")
	if parent != "" {
		b.WriteString("Slice=" + parent + "\n")
	}
	for _, what := range accounting {
		b.WriteString(what + "=yes\n")
	}
	return b.String()
}

// accounting are the properties, named alike in unit files and on D-Bus, that each slice has on.
var accounting = []string{"CPUAccounting", "MemoryAccounting", "TasksAccounting", "IOAccounting"}

// limitsText sets every limit, so that none is left from another drop-in before it. An
// empty CPUQuota is how systemd says that there is none.
func limitsText(a *policy.Aggregate) string {
	if a == nil {
		a = &policy.Aggregate{}
	}
	percent := ""
	if a.CPUQuota != nil {
		percent = strconv.FormatInt(*a.CPUQuota, 10) + "%"
	}
	return "[Slice]\nCPUQuota=" + percent + "\nMemoryMax=" + orInfinity(a.MemoryMax) +
		"\nMemoryHigh=" + orInfinity(a.MemoryHigh) + "\nTasksMax=" + orInfinity(a.TasksMax) + "\n"
}

func orInfinity(v *int64) string {
	if v == nil {
		return "infinity"
	}
	return strconv.FormatInt(*v, 10)
}
