package policy

import "strings"

// Outcome is what a rule decided. The zero value refuses.
type Outcome uint8

// The outcomes of a rule.
const (
	// Refuse stops the request.
	Refuse Outcome = iota
	// Allow lets the request through because a rule says so.
	Allow
	// FailOpen lets the request through although nothing says so, because a
	// switch in the configuration tells to. It is always recorded and counted.
	FailOpen
)

// Verdict is the decision of one rule. The zero Verdict refuses.
type Verdict struct {
	Outcome Outcome
	// Rule names the rule, as audit records and metrics spell it.
	Rule string
	// Reason is written for the person whose request was refused, or, for
	// FailOpen, for the admin who reads why it was let through.
	Reason string
}

// Allowed reports whether the request may go on.
func (v Verdict) Allowed() bool { return v.Outcome == Allow || v.Outcome == FailOpen }

// Message is what a refused caller reads.
func (v Verdict) Message() string {
	if v.Reason == "" {
		return "Permission denied: no rule allows this request. Contact system administrator."
	}
	return v.Reason
}

func allow(rule string) Verdict          { return Verdict{Outcome: Allow, Rule: rule} }
func refuse(rule, reason string) Verdict { return Verdict{Outcome: Refuse, Rule: rule, Reason: reason} }
func failOpen(rule, cause string) Verdict {
	return Verdict{Outcome: FailOpen, Rule: rule, Reason: cause}
}

// Pass is the verdict of a route that anybody may use.
func Pass() Verdict { return allow("open-to-all") }

// refuseNamed is refuse with the rule's name put at the end of the reason's first
// sentence.
func refuseNamed(rule, reason string) Verdict {
	at := strings.Index(reason, ". ")
	if at < 0 {
		at = len(strings.TrimSuffix(reason, "."))
	}
	return refuse(rule, reason[:at]+" (rule "+rule+")"+reason[at:])
}
