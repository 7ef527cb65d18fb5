"""Plain words for random prompts: most are one token in common vocabularies."""

from __future__ import annotations

_TEXT = """
apple arrow autumn bank basket beach bell bird blue board boat book bottle box branch bread
bridge bright brown brush butter button cable camp candle card carpet castle cause center
chain chair chance cheese child circle city clean clear clock cloud coat coffee cold color
copper corn corner cotton country cover cream crowd culture cup current dance danger dark
daughter desert desk dinner doctor dog door dream dress drink driver dust early earth east
edge effect empty engine evening event eye fabric face fact family farm father field figure
finger fire fish flag flat floor flower food foot forest fork fresh friend fruit garden
gate gift girl glass gold grain grass gray green ground group guest hair hammer hand harbor
heart heavy hill history home honey horse hospital hotel hour house ice idea industry
insect iron island journey judge juice jump keep kettle key kind king kitchen knife ladder
lake lamp land language large laugh leaf leather lemon letter level library light line lion
lip list long lunch machine map market master meal measure meat medical metal middle milk
mind minute mirror money month moon morning mother motion mountain mouth music name narrow
nation nature neck needle net new night noise north nose note number nut ocean office oil
open orange order oven page paint paper park part path pen pencil person picture piece pig
pipe place plant plate plow pocket point pool pot potato power price prison profit public
pump purple question quiet rail rain reason record red rice ring river road rock roof room
root round rule sail salt sand school science sea season second seed shade sharp sheep
shelf ship shirt shoe short side silk silver simple sister skin sky sleep slow small smile
smoke snow soap soft solid song sound south space spoon spring square stage star station
steel stem step stone store storm story street strong sugar summer sun table tail tall
taste teacher team test thick thin thread thunder ticket time tin toe town train travel
tree trouble truck turn valley value vessel view village voice walk wall warm wash watch
water wave weather week west wheel white wide wild wind window wine winter wire woman wood
word work world year yellow young
"""

WORDS = tuple(_TEXT.split())
