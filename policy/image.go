package policy

import (
	"fmt"
	"slices"
	"strings"
)

// Visibility says who sees the images that a user built.
type Visibility uint8

// The modes of images. The zero value hides.
const (
	// ImagesPrivate hides from everybody else what a user built.
	ImagesPrivate Visibility = iota
	// ImagesShared lets everybody read and run every image.
	ImagesShared
)

// TagUse says what a request does to a tag.
type TagUse uint8

// The uses of a tag.
const (
	// WriteTag gives it content of the user's own: tag, build, commit, load, import.
	WriteTag TagUse = iota
	// PullTag gives it the registry's content.
	PullTag
	// RemoveTag takes it away.
	RemoveTag
)

// A Tag is a name in the image store.
type Tag struct {
	// Name is the short form with the tag, such as busybox:1.36.
	Name string
	// Present is true where the Engine has it.
	Present bool
	// Writer is who wrote it, or "" where nobody knows.
	Writer string
	// Pulled is true where it came from a registry.
	Pulled bool
	// Standing are the others whose containers or images stand on the image that it
	// names; "" is somebody who has no owner label.
	Standing []string
}

// RuleTagInUse refuses what would change a tag on which somebody else stands.
const RuleTagInUse = "tag-in-use"

// ChangeTag decides whether the subject may write, pull or remove a tag.
func ChangeTag(s *Subject, t Tag, use TagUse, unowned Switch) Verdict {
	if !t.Present {
		return allow("new-tag")
	}
	// The registry says what a pulled one is, whoever pulls.
	verdict := allow("pull-tag")
	if use != PullTag || !t.Pulled && t.Writer != "" {
		verdict = AccessObject(s, Object{Kind: "image", ID: t.Name, Ref: t.Name, Owner: t.Writer}, Change, unowned)
	}
	if !verdict.Allowed() {
		if t.Writer != "" {
			verdict.Reason += " (" + t.Name + "). Use another name or tag."
		}
		return verdict
	}
	for _, owner := range t.Standing {
		if owner == s.User {
			continue
		}
		whose := "somebody else's"
		if owner != "" {
			whose = owner + "'s"
		}
		return refuse(RuleTagInUse, fmt.Sprintf(
			"Permission denied: a container or image of %s stands on the image %s, so that it can be neither replaced nor removed. Use another name or tag.", whose, t.Name))
	}
	return verdict
}

// MovedTag refuses a pull that would give a tag other content under others' feet;
// why is what ChangeTag said.
func MovedTag(why Verdict, name, digest string) Verdict {
	if digest != "" {
		why.Reason += fmt.Sprintf(" To have the registry's newer one, use docker pull %s@%s.", repository(name), digest)
	}
	return why
}

// repository is a short name without its tag.
func repository(name string) string {
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[:i]
	}
	return name
}

// ImageName decides whether an image may be called name, in the short form with
// its tag. A name that looks like an ID would win over the ID.
func ImageName(name string) Verdict {
	repo := repository(name)
	if repo == "sha256" || len(repo) >= 7 && len(repo) <= 64 && isHex(repo) {
		return refuse("image-name", fmt.Sprintf(
			"Permission denied: the name %q looks like an image's ID. Choose one that is not 7 to 64 hexadecimal digits.", repo))
	}
	return allow("image-name")
}

// An ImageView is what decides who sees an image.
type ImageView struct {
	// Tags are its names.
	Tags []Tag
	// Builders are those who built or brought it.
	Builders []string
	// Pulled is true where a registry has it.
	Pulled bool
}

// SeesTag reports whether the subject sees a tag.
func SeesTag(s *Subject, t Tag, mode Visibility) bool {
	return mode == ImagesShared || t.Writer == "" || t.Pulled || t.Writer == s.User
}

// SeesImage reports whether the subject sees an image. What has neither a name nor
// a known maker is a step of somebody's build.
func SeesImage(s *Subject, i ImageView, mode Visibility) bool {
	if mode == ImagesShared || slices.Contains(i.Builders, s.User) {
		return true
	}
	for _, t := range i.Tags {
		if SeesTag(s, t, mode) && (t.Writer != "" || len(i.Builders) == 0) {
			return true
		}
	}
	return len(i.Builders) == 0 && i.Pulled
}
