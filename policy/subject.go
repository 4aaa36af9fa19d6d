// Package policy holds the pure decisions of ds01-proxy: who may do what to
// which object, and what a request must look like when it leaves. It does no
// I/O and knows nothing of HTTP; what a rule needs to know arrives as arguments.
package policy

import "fmt"

// Subject is the caller that one connection acts for.
type Subject struct {
	// User is the user name as NSS spells it; it is the value of the owner label.
	User string
	// UID is the user's numeric id.
	UID uint32
	// GID is the user's primary group, and Home their home directory, "" where nobody
	// knows one.
	GID  uint32
	Home string
	// Group is the limits group that the user belongs to.
	Group string
	// Slice is the user's part of the slice name; no other user has the same.
	Slice string
	// Admin is true for callers that no rule applies to.
	Admin bool
	// Profile says what the user's containers may ask of the host; nil where that
	// is nothing.
	Profile *Profile
	// Mode says how far the rules are enforced for this subject.
	Mode Mode
}

// Mode says what happens to the result of a check. The zero value enforces.
type Mode uint8

// The modes of enforcement.
const (
	// ModeFull refuses what a rule refuses.
	ModeFull Mode = iota
	// ModeMonitoring runs every check and records what would have been refused,
	// then lets the request through.
	ModeMonitoring
	// ModeDisabled relays without checking.
	ModeDisabled
)

var modeNames = [...]string{"full", "monitoring", "disabled"}

// String returns the mode as it is written in the configuration.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode(%d)", m)
}

// ParseMode reads a mode as it is written in the configuration.
func ParseMode(s string) (Mode, error) {
	for i, name := range modeNames {
		if s == name {
			return Mode(i), nil
		}
	}
	return ModeFull, fmt.Errorf("%q is not an enforcement mode: use full, monitoring or disabled", s)
}

// Switch says what happens where the proxy cannot know. The zero value denies.
type Switch uint8

// The positions of a fail-open switch.
const (
	SwitchDeny Switch = iota
	SwitchAllow
)

// String returns the position as it is written in the configuration.
func (s Switch) String() string {
	if s == SwitchAllow {
		return "allow"
	}
	return "deny"
}

// ParseSwitch reads a switch as it is written in the configuration.
func ParseSwitch(s string) (Switch, error) {
	switch s {
	case "allow":
		return SwitchAllow, nil
	case "deny":
		return SwitchDeny, nil
	}
	return SwitchDeny, fmt.Errorf("%q is neither allow nor deny", s)
}
