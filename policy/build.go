package policy

import (
	"fmt"
	"strings"

	"github.com/docker/docker/api/types/container"
)

// CommitChanges decides about the Dockerfile instructions of a commit, which the
// Engine joins, one on a line, and parses as a Dockerfile. What could make an
// instruction of something else than its own line is refused: comments, which may
// name another escape, and continuations. So is a LABEL with anything to expand
// in it, since that may spell its key with variables.
func CommitChanges(changes []string) Verdict {
	for _, change := range changes {
		for line := range strings.Lines(change) {
			line = strings.TrimSpace(line)
			word, rest := cutSpace(line)
			switch {
			case line == "":
			case !isWord(word), strings.HasSuffix(line, `\`):
				return refuseNamed("commit-changes", fmt.Sprintf("Permission denied: a change must be an instruction on a line of its own, without comments or continuations (%.200s).", line))
			case strings.EqualFold(word, "LABEL"), strings.EqualFold(word, "ONBUILD") && strings.Contains(strings.ToLower(rest), "label"):
				if strings.Contains(withoutQuotes(rest), "ds01.") || strings.ContainsAny(rest, `$\`) {
					return refuse("commit-labels", fmt.Sprintf("Permission denied: labels that begin with ds01. are set by the server (%.200s; rule commit-labels). Leave them out, and write labels without variables.", line))
				}
			}
		}
	}
	return allow("commit-labels")
}

// cutSpace cuts a line where the Engine's parser does after the instruction.
func cutSpace(line string) (word, rest string) {
	i := strings.IndexAny(line, "\t\v\f\r ")
	if i < 0 {
		return line, ""
	}
	return line[:i], line[i+1:]
}

// isWord reports whether an instruction is spelt with letters alone.
func isWord(s string) bool {
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return s != ""
}

// withoutQuotes is a LABEL's key as the Engine reads it: quotes may stand anywhere
// in it.
func withoutQuotes(s string) string {
	return strings.ToLower(strings.NewReplacer(`"`, "", "'", "").Replace(s))
}

// BuildContext decides about where a classic build takes its context from: the
// Engine fetches a remote one with the host's own network.
func BuildContext(remote string, sw Switch) Verdict {
	switch {
	case remote == "", remote == "client-session", remote == "upload-request", sw == SwitchAllow:
		return allow("build-context")
	}
	return refuseNamed("build-context", "Permission denied: building from a URL is not allowed here. Clone or download it, and build from the directory.")
}

// BuildNetwork decides about the network mode of a build; decided is false where
// it names a network.
func BuildNetwork(p *Profile, mode string) (v Verdict, decided bool) {
	switch mode {
	case "", "default", "none", "bridge":
		return allow("build-network"), true
	case "host":
		if p.OwnershipOnly || allows(p.Network, "host") {
			return allow("build-network"), true
		}
		return refuseNamed("build-network", "Permission denied: build steps may not use the host's network here. Leave --network host out."), true
	}
	return Verdict{}, false
}

// HostByID decides about a network that may have been named by its ID: the host's is
// asked for by its mode, which has a rule of its own.
func HostByID(p *Profile, network Object) Verdict {
	if network.Owner == "" && network.Ref == "host" && !p.OwnershipOnly && !allows(p.Network, "host") {
		return refuseByRule(p, "host-network", "--network host; Leave it out: the container then has one of its own.")
	}
	return allow("host-network")
}

// BuildKit decides about build sessions, whose steps run outside of the user's
// slice and without owner labels.
func BuildKit(sw Switch) Verdict {
	if sw == SwitchAllow {
		return failOpen("buildkit", "builds.buildkit is allow: the steps run outside of the user's slice")
	}
	return refuseNamed("buildkit", "Permission denied: BuildKit is off on this server. Build with DOCKER_BUILDKIT=0 docker build …, or COMPOSE_DOCKER_CLI_BUILD=0 with docker-compose.")
}

// ImportSource decides about where an image is imported from.
func ImportSource(src string, sw Switch) Verdict {
	if src == "-" || sw == SwitchAllow {
		return allow("import-source")
	}
	return refuseNamed("import-source", "Permission denied: importing from a URL is not allowed here. Download it, and use docker import FILE.")
}

// BuildPull refuses a classic build that would pull the images it is built on anew,
// whichever those are.
func BuildPull(pull bool) Verdict {
	if !pull {
		return allow("build-pull")
	}
	return refuseNamed("build-pull", "Permission denied: a build may not move tags that others use. Use docker pull for the image you build on, and build without --pull.")
}

// BuildUlimits decides about the limits of a build's steps.
func BuildUlimits(p *Profile, list []*container.Ulimit) Verdict {
	if p.OwnershipOnly {
		return allow("ulimits")
	}
	if why := ulimits(p, list); why != "" {
		return refuseByRule(p, "ulimits", why)
	}
	return allow("ulimits")
}
