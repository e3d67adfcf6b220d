"""Owns the closed vocabulary of the rules: which words are verbs, nouns, cues. A word that is not here is not understood."""

from __future__ import annotations

from collections.abc import Iterator


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


_REGULAR = """
accuse act admit advance agree aim announce answer approach argue arrange arrest arrive ask assist attack avoid bark bargain bathe beckon
blink board bolt bow brush burn bury button call camp carry carve chase chat cheer chew chuckle circle claim clamber clap clean clear climb
close comb command complain confess consult converse cook copy cough count crawl cross crouch cry curse dance dart dash deliver demand
descend dig dine dip disagree dismiss dive drag drain drape dress drop dust edge embrace empty enter escape examine explain extinguish
fasten ferry fetch finger finish flee flinch flip fold follow frown fumble gather gaze gesture giggle glance glare grab greet grin groan
grumble grunt guard guide gulp hail halt hammer hand hasten haul help hesitate hitch hobble hop hum hunt hurry hush inquire inspect
interrupt introduce invite jab join joke jump kick kiss knead knock labour laugh lean leap lecture lick lift light limp listen load lock
lower march measure mend mop mount move mumble murmur mutter nod nudge obey observe offer open order pace pack paint pass pat pause pay
peel peer perch pick pin place plan plant play plead pluck plunge pocket point poke polish pour pray present press proceed promise prop
protest prowl pry pull push question quarrel race raise reach reply report resume retire retreat return ring roar row rub rush sail
salute scold scowl scramble scrape scratch scrawl scream scrub search seize serve sew shave shiver shout shove shrug shuffle shut sigh
sign sip skip slam slap slip smash smile smirk smoke smooth snap snarl sneak sneeze sniff sob spit splash sprint squint stagger stamp
stammer stare start stitch stoop stop stretch stride stroke stroll strut stuff stumble suggest swallow sweep swerve tap taste test thank
threaten tie tighten tiptoe toast touch track trade travel trudge try tug turn twist unbolt unbutton unfold unlock unpack unroll untie
unwrap urge vault visit volunteer vow wade wait walk wander warn wash watch wave weigh whisper whistle wink wipe work wrap yawn yell
insist negotiate reappear refuse accept kneel hide serve study translate deal gallop sharpen shuffle tend guess talk approve assemble await balance betray bless bother celebrate challenge
charge cheat chop clutch collapse conceal confront congratulate continue correct debate decide defend dictate dodge doze fix flatten gasp
glide gnaw grasp grimace grope haggle hover huddle ignore imitate instruct jerk jot kindle loiter lounge lurch lurk manage mock nap nurse
object patrol perform pester ponder pound praise preach proclaim propose pursue rattle reason receive recite recline recoil refill rehearse
rejoin release relent relieve remark remind remove rent repay rescue resist respond restore retort reveal rinse rip rob roll rouse rummage
scan scatter scoff scoop scour shift shriek sift skim slice slouch smuggle snatch snore sort spill spy squat squeeze stalk stash stow
straighten strap struggle stutter summon surrender survey swat tackle tease toil toss trail trap treat trim trip tuck tumble twirl usher
utter wag wail waver wheel whimper whine whisk wield witness worry wrestle yank hiss inhale exhale crow
converse apologise apologize decline deny discover embark repair mark circle prepare arrive cast hoist hurl fling collect borrow lend
"""
_IRREGULAR = """
begin began|bend bent|bite bit|blow blew|break broke|bring brought|build built|buy bought|catch caught|choose chose|come came|
creep crept|cut cut|deal dealt|dig dug|draw drew|drink drank|drive drove|eat ate|feed fed|fight fought|find found|flee fled|fling flung|
fly flew|forbid forbade|give gave|go went|grind ground|hang hung|hide hid|hit hit|hold held|keep kept|kneel knelt|lead led|lean leant|
leap leapt|leave left|lend lent|let let|light lit|make made|meet met|pay paid|put put|read read|ride rode|ring rang|rise rose|run ran|
say said|seek sought|sell sold|send sent|set set|shake shook|shoot shot|show showed|shut shut|sing sang|sit sat|sleep slept|slide slid|
speak spoke|spin spun|spit spat|split split|spring sprang|stand stood|steal stole|stick stuck|strike struck|stride strode|swear swore|
sweep swept|swim swam|swing swung|take took|teach taught|tear tore|tell told|think thought|throw threw|wake woke|wear wore|weep wept|
win won|wind wound|wring wrung|write wrote
"""
_DOUBLED = word_set(
    "quarrel travel signal equal label cancel marvel rip rob scan skim spar squat strap tap trap trim trip wag admit beg bob chat clap dip drag drop flip grab grin hop hum jab mop nod pat pin plan prop pry rub scrub shrug skip slam slap slip snap"
    " sob spit split step stir stop strut stun tap tug wrap run sit set cut hit put let dig swim spin win get trot tip top knot stab ship"
    " shut begin bar forbid"
)
_VOWELS = "aeiou"


def _past(base: str) -> str:
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in _VOWELS:
        return base[:-1] + "ied"
    return base + base[-1] + "ed" if base in _DOUBLED else base + "ed"


def _third(base: str) -> str:
    if base.endswith(("s", "x", "ch", "sh", "o")):
        return base + "es"
    return base[:-1] + "ies" if base.endswith("y") and base[-2] not in _VOWELS else base + "s"


def _going(base: str) -> str:
    if base.endswith("e") and not base.endswith("ee"):
        return base[:-1] + "ing"
    return base + base[-1] + "ing" if base in _DOUBLED else base + "ing"


def _irregular() -> Iterator[tuple[str, str]]:
    for pair in _IRREGULAR.replace("\n", "").split("|"):
        base, past = pair.split()
        yield base, past


_PAST_OF = dict(_irregular())
ACTS_BASE = word_set(_REGULAR) | word_set("step stir nod beg drop grin") | set(_PAST_OF)
"""What only the living do, as the infinitive has it."""
SPEAKS = word_set(
    "said says asked asks answered answers replied replies whispered whispers called calls cried cries shouted shouts murmured murmurs"
    " muttered mutters snapped hissed sighed laughed told tells added agreed warned insisted continued began growled spoke"
)
TALKS_WITH = word_set(
    "spoke speaks talked talks argued argues danced dances dined dines drank drinks quarrelled quarreled conversed bargained bargains"
    " whispered laughed haggled haggles chatted joked played plays"
)
SEES = word_set("saw sees watched watches heard hears noticed notices")
STATES = word_set(
    "lodged lodges dwells dwelt resides resided lay lies lived lives rested rests remained remains stayed stays belonged belongs seemed seems felt feels appeared appears looked looks died"
    " dies drowned drowns perished rotted decayed haunted haunts vanished slumped became becomes grew knew knows loved loves hated hates"
    " feared fears wanted wants needed needs liked likes missed trusted trusts owned owns turned"
)
_NEVER_ACTS = word_set(
    "named called buried drowned murdered killed slain feared remembered forgotten hanged burned burnt missed mourned beheaded poisoned"
    " strangled decayed rotted died perished haunted belonged deserved remained rested"
)
"""Past forms that the dead have too."""
ACTS = (
    frozenset(form for base in ACTS_BASE for form in (_PAST_OF.get(base) or _past(base), _third(base))) | SEES
) - _NEVER_ACTS
ACTING = frozenset(map(_going, ACTS_BASE))

BE = word_set("is was are were")
HAVE = word_set("has had have")
MODAL = word_set(
    "would could might may should must will shall can cannot wouldn't couldn't might've would've 'd 'll ought wanted hoped meant planned"
)
NEGATION = word_set(
    "not never no didn't doesn't don't isn't wasn't aren't weren't hasn't hadn't haven't won't nobody none neither nor without"
)
DETERMINER = word_set("the a an this that these those its their my our your some another every each his her one")
PREPOSITION = word_set(
    "in at on to from into onto inside within outside near by beside behind beneath under over above below through across along around"
    " towards toward past up down off out against between among for about of with before after beyond upon"
)
AT_PLACE = word_set("in at on inside within beneath under aboard")
TO_PLACE = word_set("to into")
GONE_TO = word_set(
    "fled drove crossed swam rowed crawled staggered marched climbed went came walked ran returned hurried arrived rode sailed crept rushed travelled travelled journeyed stepped climbed"
)
LOOKING_AT = word_set(
    "looked looks stared stares glanced glances pointed points peered peers gazed gazes shouted aimed laughed smiled frowned scowled yelled"
    " glared nodded waved"
)
NO_SUBJECT_AFTER = PREPOSITION - word_set(
    "before after past up down off out over through inside outside along around by"
) | word_set("than like not neither nor nobody by")

TIMES = word_set("midnight noon dawn dusk sunset sunrise nightfall daybreak midday")
NUMBERS = {
    word: number
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
} | {
    word: 20 + 10 * n
    for n, word in enumerate(["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"])
}

COLOURS = {
    colour: colour
    for colour in (
        [
            "green",
            "blue",
            "brown",
            "black",
            "white",
            "red",
            "grey",
            "hazel",
            "amber",
            "violet",
            "gold",
            "golden",
            "silver",
            "blond",
            "auburn",
            "yellow",
            "pink",
            "copper",
            "orange",
            "purple",
        ]
    )
} | {"gray": "grey", "blonde": "blond", "golden": "gold", "silvery": "silver", "ginger": "red"}
SHADES = word_set("pale dark bright deep light dull soft clear cold warm long short")
KIN = {
    "mother": "mother", "father": "father", "wife": "spouse", "husband": "spouse", "spouse": "spouse", "widow": "spouse",
    "widower": "spouse",
}  # fmt: skip
CHILDREN = {"son", "daughter", "child"}

GHOSTLY = word_set(
    "ghost spirit shade spectre specter corpse body remains memory statue portrait effigy likeness skeleton echo phantom apparition"
    " wraith bones skull ashes coffin grave tomb picture painting photograph recording"
)
REVIVED = word_set("resurrected revived reanimated undead reborn")
DREAM = word_set(
    "dream dreamed dreamt dreams dreaming nightmare nightmares vision visions imagined imagines pictured hallucination fantasy"
)
WAKES = word_set("woke awoke wakes awakes awakened wakened")
HEARSAY = word_set(
    "claimed claims claim believed believes believe rumour rumours rumor rumors rumoured legend legends supposedly allegedly reportedly"
    " apparently according gossip wondered wonders suspected suspects thought thinks pretended pretends lied lies hoped hopes feared"
    " supposed guessed swore swears tale tales story stories insisted told perhaps maybe possibly probably imagine suppose wished"
    " wishes doubted denied denies say they'd hearsay"
)
"""What follows them in a sentence is somebody's word, not the text's."""
PREFIXED = word_set(
    "if unless whether perhaps maybe possibly probably supposedly allegedly reportedly apparently suppose imagine had should were"
)
EARLIER = word_set(
    "ago earlier formerly previously once childhood boyhood girlhood remembered remembers recalled recalls yesteryear lifetime"
)
LATER = word_set("then later afterwards afterward until soon next finally before after since again")

PEOPLE = word_set(
    "woman man women men girl boy child children stranger strangers somebody someone nobody clerk clerks soldier sailor nurse dog cat horse crowd"
    " servant guard people thief beggar widow priest figure voice one"
)
"""Whom `his` and `her` may mean beside those who are named."""
PRONOUNS = {"he", "she"}
POSSESSIVES = {"his", "her"}
TITLES = word_set(
    "Mr Mrs Ms Miss Dr Doctor Captain Sergeant Inspector Father Mother Sister Brother Lord Lady Sir Madam Old Young Saint St Professor"
    " Judge Reverend Deacon Bishop Uncle Aunt Count Countess Baron Duke Prince Princess King Queen Master Mistress Constable Colonel Major"
)
NOT_NAMES = word_set(
    "I I'm I'll I've I'd Monday Tuesday Wednesday Thursday Friday Saturday Sunday January February March April May June July August"
    " September October November December God Lord Heaven Hell Christ Christmas Easter English French Latin German Spanish Italian Greek"
    " Roman Russian Dutch Turkish Irish Scottish Welsh Christian Bible Devil Satan Death Yes No Oh Ah O Well OK A.M P.M AM PM Sabbath"
    " Nature Providence Fate Mr Mrs Ms Miss Dr Sir Madam Halloween Lent Advent Michaelmas Sundays Mondays Tuesdays Wednesdays Thursdays Saturdays Fridays"
)
"""Capitalised, and nobody's name."""
STARTERS = word_set(
    "rain smoke silence dust water light darkness fear someone somebody nobody everybody everyone anyone anybody fog mist blood wind snow ash"
    " night dawn morning evening thunder lightning death hope time something nothing everything men women people children voices soldiers"
    " lanterns bells crows rats gulls others both all most many few some several none neither each either another one two three four five"
    " six seven eight nine ten half what who whose whom which where when why how there here this that these those the a an it he she they"
    " we you i his her its their my our your but and or nor so yet for because although though while as if unless until since after before"
    " once whenever wherever whether not never no yes then now soon later today tonight tomorrow yesterday again still only just even"
    " perhaps maybe meanwhile instead however therefore thus hence indeed also moreover besides finally suddenly at in on to from into of"
    " with without by near under over above below behind beside between among through across along around past up down off out inside"
    " outside beyond beneath against during despite about like than too very quite rather almost always often sometimes usually ever"
    " every any such same other less more much little great good bad old new poor dear dead cold hot dark heavy sleep work love money"
    " music laughter steam frost hail sunlight moonlight sunset sunrise dusk noon midnight winter summer spring autumn justice truth"
    " father mother brother sister doctor captain sir madam guards servants footsteps hands eyes shadows candles waves clouds sand mud"
    " grass iron wood stone glass paper gold silver fire flames ice upon yonder whence thence hither thither alas aye nay hush come go"
    " look listen wait stop let see take give tell ask keep stay leave run stand sit do don't did can could would will shall may might"
    " must should is was are were be been being have has had beasts birds dogs cats wolves horses snakes worms flies bats day days nights"
    " hours minutes weeks months years life grief anger pain hunger thirst cloth rope oil salt bread wine ale meat fish nurses priests"
    " chalk papa mama whoever whatever whichever remorse memory despair happy mate porters sailors fishermen merchants mourners strangers travellers villagers townsfolk clerks thieves beggars widows orphans"
)
"""Words that begin a sentence with a capital and are no name."""

NOUNS = word_set(
    "door doors window windows lamp lamps lantern lanterns candle candles table tables chair chairs bench key keys lock coat hat gloves boots"
    " cloak scarf book books ledger letter letters page pages pen ink coin coins purse bag sack box crate chest jar bottle bottles cup glass"
    " plate knife rope chain hook shovel spade cart wagon boat ferry oar oars net sail bridge road street lane path alley stairs steps"
    " ladder floor wall walls roof ceiling hearth fire stove bed blanket pillow curtain mirror clock bell bells gate fence garden yard well"
    " tree trees field river water sea shore sand rain snow fog mist wind night morning evening day dawn dusk midnight noon hour room house"
    " kitchen cellar attic hall corridor cabinet drawer shelf desk map stone stones wood paper cloth bread soup wine tea water milk salt"
    " hand hands head shoulder shoulders arm arms hair face feet foot knee knees back crowd stranger strangers man woman men women child"
    " children dog cat horse rat crow gull song tune prayer name tools tray basket broom needle thread ring umbrella newspaper pipe"
    " counter stool ship harbour village town city hill wall corner step moment while"
)
ADJECTIVES = word_set(
    "bright old new small large big little long short heavy light dark pale wet dry cold warm hot open closed empty full broken clean dirty quiet"
    " silent tired slow quick narrow wide high low wooden iron thin thick soft hard rusty dusty damp grey white black red green blue brown"
    " calm alone afraid angry hungry thirsty ready awake asleep late early busy patient careful far near last first second third next"
)
ADVERBS = word_set(
    "slowly quickly quietly softly silently carefully then now again soon later still there here away back home alone twice once together"
    " down up out in inside outside gently calmly patiently finally suddenly also only just too aloud abroad indoors outdoors"
    " always often forever barely already merely forward forwards backwards aside apart ahead downstairs upstairs meanwhile both"
)
