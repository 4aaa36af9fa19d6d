package policy

import (
	"fmt"
	"strings"
)

// Labels that say whose an object is and what made it. Dashboards, clean-up
// jobs and quota tools read the same labels.
const (
	LabelUser          = "ds01.user"
	LabelManaged       = "ds01.managed"
	LabelContainerType = "ds01.container_type"
	LabelCreatedAt     = "ds01.created_at"
	LabelInterface     = "ds01.interface"
	LabelGPUSlot       = "ds01.gpu_slot"
	LabelGPUEphemeral  = "ds01.gpu_ephemeral"
	LabelProtected     = "ds01.protected"
	// LabelNetworkName is the name that a network's owner gave it, where the
	// Engine has it under another because that one was taken.
	LabelNetworkName = "ds01.network_name"
	// LabelBinds names the staged binds of a container, with commas between.
	LabelBinds = "ds01.binds"
	// LabelVolumeMark is a random text of the request that made a volume.
	LabelVolumeMark = "ds01.volume_mark"
	// LabelLegacyUser marks the owner of containers made before LabelUser was.
	LabelLegacyUser = "aime.mlc.USER"
)

// Object is something in the Engine that a request refers to.
type Object struct {
	// Kind is the word that messages use: container, exec, network, volume, image.
	Kind string
	// ID is the Engine's full identifier; requests are forwarded with it.
	ID string
	// Ref is what the caller called it.
	Ref string
	// Owner is the owning user's name, or empty where no label says so.
	Owner string
	// Protected marks infrastructure that only admins may change.
	Protected bool
}

// OwnerOf returns the owner that an object's labels name, or "".
func OwnerOf(labels map[string]string) string {
	if owner := labels[LabelUser]; owner != "" {
		return owner
	}
	return labels[LabelLegacyUser]
}

// IsProtected reports whether labels mark protected infrastructure.
func IsProtected(labels map[string]string) bool { return labels[LabelProtected] == "true" }

// Use says what a request does to an object.
type Use uint8

// Read leaves the object as it is; Change does not.
const (
	Change Use = iota
	Read
)

// AccessObject decides whether the subject may use the object.
func AccessObject(s *Subject, o Object, use Use, unowned Switch) Verdict {
	switch {
	case s.Admin:
		return allow("admin")
	case o.Owner == "" && unowned != SwitchAllow:
		return refuse("unowned-"+o.Kind, fmt.Sprintf(
			"Permission denied: this %s has no owner label, and %ss without an owner are closed here. Contact system administrator.", o.Kind, o.Kind))
	case o.Owner != "" && o.Owner != s.User:
		return refuse("own-"+o.Kind, fmt.Sprintf("Permission denied: this %s belongs to %s", o.Kind, o.Owner))
	case o.Protected && use == Change:
		return refuse("protected-"+o.Kind, fmt.Sprintf(
			"Error: Container '%s' is protected infrastructure.\nAdmin access required. Contact system administrator.", o.Ref))
	case o.Owner == "":
		key := "unowned_resources"
		if o.Kind == "container" || o.Kind == "exec" {
			key = "unowned_containers"
		}
		return failOpen("unowned-"+o.Kind, fmt.Sprintf("%s %s has no owner label and %s is allow", o.Kind, o.ID, key))
	}
	return allow("own-" + o.Kind)
}

// AdminsOnly refuses everybody but admins; what names the thing asked for.
func AdminsOnly(s *Subject, what string) Verdict {
	if s.Admin {
		return allow("admin")
	}
	return refuse("admins-only", fmt.Sprintf("Permission denied: %s is for admins only on this server. Contact system administrator.", what))
}

// UnknownRoute decides about a request that no row of the route table knows.
func UnknownRoute(s *Subject, method, path string, sw Switch) Verdict {
	switch {
	case s.Admin:
		return allow("admin")
	case sw == SwitchAllow:
		return failOpen("unknown-route", fmt.Sprintf("no route is known for %s %.200s and unknown_routes is allow", method, path))
	}
	return refuse("unknown-route", fmt.Sprintf("Permission denied: %s %.200s is not a request that this server knows. Contact system administrator.", method, path))
}

// NewName decides whether a container may be called name. A name that looks
// like an ID would win over another container's ID prefix when the Engine
// resolves it (full ID, then exact name, then prefix).
func NewName(name string) Verdict {
	bare := strings.TrimPrefix(name, "/")
	if len(bare) >= 12 && len(bare) <= 64 && isHex(bare) {
		return refuse("container-name", fmt.Sprintf(
			"Permission denied: the name %q looks like a container ID. Choose a name that is not 12 to 64 hexadecimal digits.", bare))
	}
	return allow("container-name")
}

// NameTaken says that a container's name is in use by somebody else, in the words of
// the Engine as far as they go.
func NameTaken(name string) string {
	return fmt.Sprintf("Conflict. The container name %q is already in use by a container that is not yours. Choose another name; with compose, another project name: -p NAME, or COMPOSE_PROJECT_NAME.",
		"/"+strings.TrimPrefix(name, "/"))
}

func isHex(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
			return false
		}
	}
	return true
}
