package policy

import (
	"fmt"
	"maps"
	"path"
	"slices"
)

// reserved are the labels that only the proxy and admins write.
var reserved = []string{
	LabelUser, LabelManaged, LabelContainerType, LabelCreatedAt,
	LabelGPUSlot, LabelGPUEphemeral, LabelProtected, LabelNetworkName, LabelBinds, LabelVolumeMark,
}

// OwnLabels returns the client's labels with the owner's marks in place of
// whatever it says about ownership. The client's map is not changed.
func OwnLabels(labels map[string]string, s *Subject) map[string]string {
	out := WithoutReserved(labels)
	out[LabelUser] = s.User
	out[LabelManaged] = "true"
	return out
}

// WithoutReserved returns the labels that clients may set, in a map of its own.
func WithoutReserved(labels map[string]string) map[string]string {
	out := make(map[string]string, len(labels)+5)
	maps.Copy(out, labels)
	for _, k := range reserved {
		delete(out, k)
	}
	return out
}

// cleanTarget is a path in a container in the form in which two can be compared.
func cleanTarget(p string) string { return path.Clean("/" + p) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// maxLabels is how many bytes the labels of a container may have: every list of
// containers carries them, everybody's. Dev containers keep some tens of
// kilobytes there.
const maxLabels = 256 << 10

// LabelSize decides about the size of a container's labels.
func LabelSize(labels map[string]string) Verdict {
	size := 0
	for k, v := range labels {
		size += len(k) + len(v)
	}
	if size > maxLabels {
		return refuseNamed("label-size", fmt.Sprintf("Permission denied: the labels have %d bytes and the limit is %d. Keep what is large in a file.", size, maxLabels))
	}
	return allow("label-size")
}
